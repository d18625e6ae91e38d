// Source  nft(8), iptables-save(8), linux/netfilter/nf_tables.h; tested on 6.18 with nft 1.0.6 and iptables 1.8.9
// Rule    /proc/thread-self/net/ip_tables_names lists the tables of legacy iptables that this namespace uses.
// Rule    nft prints most of what iptables-nft made as rules of its own, and takes them. Extensions that it does not
//         know ("xt match …") it does not take: tables with such are what iptables-nft-save says. What one of them
//         does not show exactly shows when it is made anew and listed again: that is tried before a tree depends on it.
// Rule    nft reads files that its input includes; iptables runs the program of --modprobe, in any line, also by a
//         shorter name or among other letters (getopt_long(3)). What is in a checkpoint may do neither.
// Not here what the connections of a firewall are (conntrack), and its lists of seen addresses (hashlimit, recent)
#include "engine/tasks/firewall.h"

#include <fcntl.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/base/run_tool.h"
#include "engine/base/unique_fd.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

using Entry = image::FirewallEntry;

// One answer is enough.
Result<bool> HasTables() {
  const UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
  if (!fd && errno == EPROTONOSUPPORT) return false;
  if (!fd) return SyscallError(errno, "socket of netfilter");
  struct {
    nlmsghdr header;
    nfgenmsg generic;
  } request = {};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  if (::send(fd.get(), &request, sizeof(request), 0) < 0)
    return SyscallError(errno, "ask nf_tables");
  alignas(nlmsghdr) std::array<char, 65536> answer;
  if (::recv(fd.get(), answer.data(), answer.size(), 0) < 0) {
    return SyscallError(errno, "ask nf_tables");
  }
  nlmsghdr header;
  std::memcpy(&header, answer.data(), sizeof(header));
  if (header.nlmsg_type == NLMSG_DONE) return false;
  if (header.nlmsg_type != NLMSG_ERROR) return true;
  nlmsgerr error;
  std::memcpy(&error, answer.data() + NLMSG_HDRLEN, sizeof(error));
  if (error.error == -EOPNOTSUPP || error.error == -EINVAL) return false;  // not in this kernel
  return SyscallError(-error.error, "ask nf_tables");
}

Result<bool> HasLegacyTables(const std::string& family) {
  const Result<std::string> names =
      ReadFileAt(AT_FDCWD, "/proc/thread-self/net/" + family + "_tables_names");
  if (!names.ok() && ErrnoOf(names.status()) == ENOENT) return false;
  RETURN_IF_ERROR(names.status());
  return !names->empty();
}

// What `words` put out, without its comments, table by table; nothing when there is no such program. Rule: tables are
// listed in the order in which they came, or the other way around, which means nothing.
Result<std::string> SavedBy(std::vector<std::string> words) {
  const Result<std::string> all = RunTool(std::move(words));
  if (all.status().code() == StatusCode::kNotFound) return std::string();
  RETURN_IF_ERROR(all.status());
  std::vector<std::string> tables;
  for (std::string_view rest = *all; !rest.empty();) {
    const std::string_view line = text::Cut(rest, '\n');
    if (line.starts_with('#')) continue;
    if (line.starts_with('*') || tables.empty()) tables.emplace_back();
    tables.back() += std::string(line) + "\n";
  }
  std::ranges::sort(tables);
  std::string saved;
  for (const std::string& table : tables) saved += table;
  return saved;
}

// "ip filter" for "*filter" in what iptables-nft-save says.
void AddSavedTables(const std::string& saved, const std::string& family,
                    std::set<std::string>& tables) {
  for (std::string_view rest = saved; !rest.empty();) {
    const std::string_view line = text::Cut(rest, '\n');
    if (line.starts_with('*')) tables.insert(family + " " + std::string(line.substr(1)));
  }
}

// The ruleset that nft lists without those of `tables`.
std::string Without(const std::string& ruleset, const std::set<std::string>& tables) {
  std::string kept;
  bool skips = false;
  for (std::string_view rest = ruleset; !rest.empty();) {
    const std::string_view line = text::Cut(rest, '\n');
    constexpr std::string_view kTable = "table ", kOpen = " {";
    if (line.starts_with(kTable) && line.ends_with(kOpen)) {
      const auto name = line.substr(kTable.size(), line.size() - kTable.size() - kOpen.size());
      skips = tables.contains(std::string(name));
    }
    if (!skips) kept += std::string(line) + "\n";
  }
  return kept;
}

// All rules without what changes by itself. `by_iptables`: of tables that are iptables-nft's, what that says.
Result<std::string> ListRules(bool has_nft, bool has_legacy, bool by_iptables) {
  std::string rules;
  if (has_nft) {
    ASSIGN_OR_RETURN(std::string ruleset, RunTool({"nft", "-s", "list", "ruleset"}));
    ASSIGN_OR_RETURN(const std::string v4, SavedBy({"iptables-nft-save"}));
    ASSIGN_OR_RETURN(const std::string v6, SavedBy({"ip6tables-nft-save"}));
    if (by_iptables) {
      std::set<std::string> tables;
      AddSavedTables(v4, "ip", tables);
      AddSavedTables(v6, "ip6", tables);
      ruleset = Without(ruleset, tables);
    }
    rules += ruleset + v4 + v6;
  }
  if (!has_legacy) return rules;
  for (const char* const program : {"iptables-legacy-save", "ip6tables-legacy-save"}) {
    ASSIGN_OR_RETURN(const std::string saved, SavedBy({program}));
    rules += saved;
  }
  return rules;
}

bool HasNft(const Entry& entry) {
  return entry.has_nftables() || entry.has_iptables_nft() || entry.has_ip6tables_nft();
}
bool HasLegacy(const Entry& entry) {
  return entry.has_iptables_legacy() || entry.has_ip6tables_legacy();
}
bool ByIptables(const Entry& entry) {
  return entry.has_iptables_nft() || entry.has_ip6tables_nft();
}

Status Refuse(std::string_view what) {
  return DataLoss("the rules of the firewall have " + std::string(what) +
                  ", which no list of rules has");
}

Status CheckNft(std::string_view text) {
  bool is_quoted = false, is_comment = false;
  std::string word;
  for (const char c : text) {
    if (!is_quoted && (c == '#' || c == '\n')) is_comment = c == '#';
    if (is_comment) continue;
    if (c == '"') is_quoted = !is_quoted;
    const bool in_word =
        !is_quoted && (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_');
    if (in_word) {
      word += c;
    } else if (std::exchange(word, {}) == "include") {
      return Refuse("an include");
    }
  }
  return word == "include" ? Refuse("an include") : OkStatus();
}

// Quotes are taken away, wherever they are: of a comment too much is refused.
Status CheckIptables(const std::string& text) {
  constexpr std::string_view kModprobe = "--modprobe";
  std::string plain;
  std::ranges::copy_if(text, std::back_inserter(plain),
                       [](char c) { return c != '"' && c != '\'' && c != '\\'; });
  for (const std::string_view word : text::Words(plain)) {
    const bool is_long = word.starts_with("--");
    const std::string_view name = word.substr(0, word.find('='));
    const bool loads = is_long ? name.size() > 2 && kModprobe.starts_with(name)
                               : word.starts_with('-') && word.find('M') != std::string_view::npos;
    if (loads) return Refuse("an option that runs a program");
  }
  return OkStatus();
}

Status Take(const std::string& text, std::vector<std::string> words) {
  if (text.empty()) return OkStatus();
  RETURN_IF_ERROR(words.front() == "nft" ? CheckNft(text) : CheckIptables(text));
  return RunTool(std::move(words), text).status();
}

// In the namespace of this thread.
Status Make(const Entry& entry) {
  RETURN_IF_ERROR(Take(entry.iptables_legacy(), {"iptables-legacy-restore", "-c"}));
  RETURN_IF_ERROR(Take(entry.ip6tables_legacy(), {"ip6tables-legacy-restore", "-c"}));
  RETURN_IF_ERROR(Take(entry.iptables_nft(), {"iptables-nft-restore", "-c"}));
  RETURN_IF_ERROR(Take(entry.ip6tables_nft(), {"ip6tables-nft-restore", "-c"}));
  RETURN_IF_ERROR(Take(entry.nftables(), {"nft", "-f", "-"}));
  ASSIGN_OR_RETURN(const std::string rules,
                   ListRules(HasNft(entry), HasLegacy(entry), ByIptables(entry)));
  return rules == entry.rules() ? OkStatus() : FailedPrecondition("its rules are not the same");
}

Status TryIn(int fresh, const Entry& entry) {
  return InNamespace(fresh, CLONE_NEWNET, [&] { return Make(entry); });
}

Status ReadNft(Entry& entry, bool by_iptables) {
  ASSIGN_OR_RETURN(std::string ruleset, RunTool({"nft", "list", "ruleset"}));
  if (by_iptables) {
    std::set<std::string> tables;
    ASSIGN_OR_RETURN(*entry.mutable_iptables_nft(), SavedBy({"iptables-nft-save", "-c"}));
    ASSIGN_OR_RETURN(*entry.mutable_ip6tables_nft(), SavedBy({"ip6tables-nft-save", "-c"}));
    AddSavedTables(entry.iptables_nft(), "ip", tables);
    AddSavedTables(entry.ip6tables_nft(), "ip6", tables);
    ruleset = Without(ruleset, tables);
  }
  entry.set_nftables(ruleset);
  return OkStatus();
}

struct Kinds {
  bool nft = false, v4 = false, v6 = false;  // nf_tables, legacy iptables
  bool any() const { return nft || v4 || v6; }
};

Result<Entry> ReadRules(const Kinds& kinds, bool by_iptables) {
  Entry entry;
  if (kinds.nft) RETURN_IF_ERROR(ReadNft(entry, by_iptables));
  if (kinds.v4) {
    ASSIGN_OR_RETURN(*entry.mutable_iptables_legacy(), RunTool({"iptables-legacy-save", "-c"}));
  }
  if (kinds.v6) {
    ASSIGN_OR_RETURN(*entry.mutable_ip6tables_legacy(), RunTool({"ip6tables-legacy-save", "-c"}));
  }
  ASSIGN_OR_RETURN(*entry.mutable_rules(), ListRules(kinds.nft, kinds.v4 || kinds.v6, by_iptables));
  return entry;
}

}  // namespace

Result<std::optional<image::FirewallEntry>> ReadFirewall(int ns_fd) {
  Kinds kinds;
  RETURN_IF_ERROR(InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(kinds.nft, HasTables());
    ASSIGN_OR_RETURN(kinds.v4, HasLegacyTables("ip"));
    ASSIGN_OR_RETURN(kinds.v6, HasLegacyTables("ip6"));
    return OkStatus();
  }));
  if (!kinds.any()) return std::nullopt;
  Status status;
  for (const bool by_iptables : {false, true}) {
    Entry entry;
    status = InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
      ASSIGN_OR_RETURN(entry, ReadRules(kinds, by_iptables));
      return OkStatus();
    });
    if (!status.ok()) break;
    ASSIGN_OR_RETURN(const UniqueFd fresh, MakeNetwork(ns_fd));
    status = TryIn(fresh.get(), entry);
    if (status.ok()) return entry;
  }
  return Unimplemented("the rules of its firewall cannot be made again: " + Message(status));
}

Status RestoreFirewall(int ns_fd, const image::FirewallEntry& entry) {
  const Status status = InNamespace(ns_fd, CLONE_NEWNET, [&] { return Make(entry); });
  if (status.ok()) return status;
  return FailedPrecondition("the firewall of its network namespace cannot be made again: " +
                            Message(status));
}

}  // namespace stasis::engine
