// Source  proc_pid_net(5), net/ipv4/tcp_ipv4.c get_tcp4_sock, net/ipv6/tcp_ipv6.c get_tcp6_sock
// Rule    An address is shown word by word, each as this machine reads it.
#include "engine/proc/net_sockets.h"

#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::size_t kWordDigits = 8;
constexpr std::size_t kRemote = 2, kInode = 9;  // places of the words of a line

Status ParseRemote(std::string_view text, NetSocket& socket) {
  std::string_view digits = text::Cut(text, ':');
  if (digits.size() != kWordDigits && digits.size() != 4 * kWordDigits) {
    return DataLoss("a strange address");
  }
  for (; !digits.empty(); digits.remove_prefix(kWordDigits)) {
    ASSIGN_OR_RETURN(const auto word,
                     text::Number<std::uint32_t>(digits.substr(0, kWordDigits), 16));
    socket.remote_words.push_back(word);
  }
  ASSIGN_OR_RETURN(socket.remote_port, text::Number<std::uint16_t>(text, 16));
  return OkStatus();
}

}  // namespace

Result<NetSocket> FindNetSocket(std::string_view text, std::uint64_t inode) {
  (void)text::CutLine(text);  // headings
  while (!text.empty()) {
    const std::vector<std::string_view> words = text::Words(text::CutLine(text));
    if (words.size() <= kInode) continue;
    NetSocket socket;
    ASSIGN_OR_RETURN(socket.inode, text::Number<std::uint64_t>(words[kInode]));
    if (socket.inode != inode) continue;
    RETURN_IF_ERROR(ParseRemote(words[kRemote], socket));
    return socket;
  }
  return NotFound("no socket of that inode");
}

}  // namespace stasis::engine
