#include "archive/open_files.h"

#include <absl/strings/ascii.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"

namespace stasis::archive {
namespace {

/// Addresses are stored as the kernel has them, in network order, in one or four words.
template <typename Words>
std::string AddressText(std::uint32_t family, const Words& words, std::uint32_t port) {
  std::array<std::uint32_t, 4> raw = {};
  std::copy_n(words.begin(), std::min<int>(words.size(), 4), raw.begin());
  std::array<char, INET6_ADDRSTRLEN> text = {};
  ::inet_ntop(static_cast<int>(family), raw.data(), text.data(), text.size());
  const std::string host = family == AF_INET6 ? "[" + std::string(text.data()) + "]" : text.data();
  return host + ":" + std::to_string(port);
}

std::string ProtocolName(const image::InetSkEntry& socket) {
  const std::string version = socket.family() == AF_INET6 ? "6" : "";
  switch (socket.proto()) {
    case IPPROTO_TCP:
      return "tcp" + version;
    case IPPROTO_UDP:
      return "udp" + version;
    case IPPROTO_ICMP:
      return "icmp";
    case IPPROTO_ICMPV6:
      return "icmp6";
    default:
      return "ip" + version + " protocol " + std::to_string(socket.proto());
  }
}

std::string DescribeInet(const image::InetSkEntry& socket) {
  std::string text = AddressText(socket.family(), socket.src_addr(), socket.src_port());
  if (socket.state() == TCP_LISTEN) return text + " listening";
  if (socket.dst_port() == 0) return text;
  return text + " to " + AddressText(socket.family(), socket.dst_addr(), socket.dst_port());
}

std::string DescribeUnix(const image::UnixSkEntry& socket) {
  std::string name = socket.name();
  if (name.starts_with('\0')) name[0] = '@';  // unix(7): an abstract name
  while (name.ends_with('\0')) name.pop_back();
  if (socket.state() == TCP_LISTEN) return name + " listening";
  if (name.empty() && socket.peer() != 0) return "to socket " + std::to_string(socket.peer());
  return name;
}

std::string TypeName(image::FdTypes type) {
  std::string name = absl::AsciiStrToLower(image::FdTypes_Name(type));
  return name.starts_with("fd_") ? name.substr(3) : name;
}

}  // namespace

Result<OpenFiles> OpenFiles::Read(const engine::ImageSource& images) {
  OpenFiles files(images);
  ASSIGN_OR_RETURN(std::vector<image::FileEntry> entries,
                   engine::ReadRecords<image::FileEntry>(images, "files.img", "files"));
  for (image::FileEntry& entry : entries) {
    const std::uint32_t id = entry.id();
    files.files_[id] = std::move(entry);
  }
  ASSIGN_OR_RETURN(const std::vector<image::MemfdInodeEntry> memfds,
                   engine::ReadRecords<image::MemfdInodeEntry>(images, "memfd.img", "memfd"));
  for (const image::MemfdInodeEntry& memfd : memfds) {
    files.memfd_names_[memfd.inode_id()] = memfd.name();
  }
  return files;
}

Result<std::vector<DescribedFile>> OpenFiles::OfTable(std::uint32_t files_id) const {
  ASSIGN_OR_RETURN(const std::vector<image::FdinfoEntry> table,
                   engine::ReadRecords<image::FdinfoEntry>(
                       images_, engine::ImageName("fdinfo", files_id), "fdinfo"));
  std::vector<DescribedFile> described;
  for (const image::FdinfoEntry& entry : table) {
    const auto file = files_.find(entry.id());
    DescribedFile one = file != files_.end() ? Describe(file->second) : DescribedFile();
    if (one.kind.empty()) one.kind = TypeName(entry.type());
    one.fd = entry.fd();
    described.push_back(std::move(one));
  }
  std::ranges::sort(described, {}, &DescribedFile::fd);
  return described;
}

std::string OpenFiles::PathOf(std::uint32_t file_id) const {
  const auto file = files_.find(file_id);
  return file != files_.end() ? file->second.reg().name() : "";
}

DescribedFile OpenFiles::Describe(const image::FileEntry& entry) const {
  DescribedFile file;
  file.kind = TypeName(entry.type());
  if (entry.has_reg()) {
    file.kind = "file";
    file.description = entry.reg().name();
  } else if (entry.has_isk()) {
    file.kind = ProtocolName(entry.isk());
    file.description = DescribeInet(entry.isk());
    file.is_socket = true;
  } else if (entry.has_usk()) {
    file.kind = "unix";
    file.description = DescribeUnix(entry.usk());
    file.is_socket = true;
  } else if (entry.has_nlsk() || entry.has_psk()) {
    file.kind = entry.has_nlsk() ? "netlink" : "packet";
    file.is_socket = true;
  } else if (entry.has_pipe()) {
    file.description = "pipe:[" + std::to_string(entry.pipe().pipe_id()) + "]";
  } else if (entry.has_fifo()) {
    file.description = PathOf(entry.fifo().regf_id());
  } else if (entry.has_memfd()) {
    const auto name = memfd_names_.find(entry.memfd().inode_id());
    if (name != memfd_names_.end()) file.description = name->second;
  } else if (entry.has_tty()) {
    file.description = PathOf(entry.tty().regf_id());
  } else if (entry.has_efd()) {
    file.description = "counter " + std::to_string(entry.efd().counter());
  } else if (entry.has_epfd()) {
    file.kind = "epoll";
    file.description = "watches " + std::to_string(entry.epfd().tfd_size());
  }
  return file;
}

}  // namespace stasis::archive
