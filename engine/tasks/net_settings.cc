// Source  proc_sys_net(5), Documentation/networking/ip-sysctl.rst; net/sysctl_net.c; tested on 6.18
// Rule    /proc/sys/net shows the network namespace of the thread that opens it, and in one that is not the machine's
//         first only what each has for itself.
// Rule    A stable_secret that is set chooses addr_gen_mode for its interface, or for all (net/ipv6/addrconf.c); one that
//         is not cannot be read
// Rule    A value for all interfaces changes those of each (conf/all/forwarding), so it is set before these.
#include "engine/tasks/net_settings.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "engine/base/io.h"
#include "engine/base/namespace.h"
#include "engine/base/unique_fd.h"

namespace stasis::engine {
namespace {

constexpr char kFolder[] = "/proc/sys/net";
constexpr int kMaxSettings = 20'000;
constexpr std::size_t kLongestValue = 4096;
constexpr int kMaxDepth = 8;
constexpr int kMaxNotes = 3;

// Nobody else can hold the same: they are made for each namespace, or are no settings.
bool IsOwn(std::string_view name) {
  return name.ends_with("/tcp_fastopen_key") || name.ends_with("/flush");
}

Result<UniqueFd> OpenBelow(int folder, const std::string& name, std::uint64_t flags) {
  open_how how = {};
  how.flags = flags | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, folder, name.c_str(), &how, sizeof(how))));
  if (!fd) return SyscallError(errno, "open /proc/sys/net/" + name);
  return fd;
}

Result<std::string> ValueOf(int folder, const std::string& name) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenBelow(folder, name, O_RDONLY));
  std::string value(kLongestValue, '\0');
  const ssize_t length = ::read(fd.get(), value.data(), value.size());
  if (length < 0) return SyscallError(errno, "read /proc/sys/net/" + name);
  value.resize(static_cast<std::size_t>(length));
  return value;
}

Status Walk(int top, const std::string& prefix, int depth, image::NetnsEntry& entry) {
  if (depth > kMaxDepth) return OkStatus();
  ASSIGN_OR_RETURN(UniqueFd fd,
                   OpenBelow(top, prefix.empty() ? "." : prefix, O_RDONLY | O_DIRECTORY));
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::fdopendir(fd.get()), &::closedir);
  if (!folder) return SyscallError(errno, "fdopendir");
  (void)fd.Release();
  while (const dirent* const at = ::readdir(folder.get())) {
    const std::string name = at->d_name;
    if (name == "." || name == "..") continue;
    const std::string path = prefix.empty() ? name : prefix + "/" + name;
    struct stat st = {};
    if (::fstatat(::dirfd(folder.get()), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (S_ISDIR(st.st_mode)) {
      RETURN_IF_ERROR(Walk(top, path, depth + 1, entry));
      continue;
    }
    constexpr mode_t kBoth = S_IRUSR | S_IWUSR;
    if ((st.st_mode & kBoth) != kBoth || IsOwn(path)) continue;
    Result<std::string> value = ValueOf(top, path);
    if (!value.ok() || entry.stasis_settings_size() >= kMaxSettings) continue;
    image::NetSetting& setting = *entry.add_stasis_settings();
    setting.set_name(path);
    setting.set_value(*std::move(value));
  }
  return OkStatus();
}

// What chooses others, what is for all interfaces, then what new ones get, then what is left.
int Order(const image::NetSetting& setting) {
  const std::string& name = setting.name();
  if (name == "ipv4/ip_forward" || name.ends_with("/stable_secret")) return 0;
  if (name.find("/conf/all/") != std::string::npos) return 1;
  return name.find("/conf/default/") != std::string::npos ? 2 : 3;
}

Status SetAll(int top, const std::vector<const image::NetSetting*>& settings,
              std::vector<std::string>& notes) {
  int failed = 0;
  bool is_same = false;
  for (const bool again : {false, true}) {
    if (again && is_same) break;
    is_same = true;
    for (const image::NetSetting* const setting : settings) {
      const Result<std::string> now = ValueOf(top, setting->name());
      if (now.ok() && *now == setting->value()) continue;
      is_same = false;
      const Result<UniqueFd> fd = OpenBelow(top, setting->name(), O_WRONLY);
      const Status written = fd.ok() ? WriteAll(fd->get(), setting->value()) : fd.status();
      if (written.ok() || !again || ++failed > kMaxNotes) continue;
      notes.push_back("the setting net/" + setting->name() + " of its network namespace was " +
                      setting->value().substr(0, setting->value().find('\n')) +
                      ", and is that of a new one: " + Message(written));
    }
  }
  if (failed > kMaxNotes) {
    notes.push_back(std::to_string(failed - kMaxNotes) +
                    " more settings of its network namespace are those of a new one");
  }
  return OkStatus();
}

}  // namespace

Status ReadNetSettings(int ns_fd, image::NetnsEntry& entry) {
  return InNamespace(ns_fd, CLONE_NEWNET, [&entry]() -> Status {
    ASSIGN_OR_RETURN(const UniqueFd top, OpenAt(AT_FDCWD, kFolder, O_PATH | O_DIRECTORY));
    return Walk(top.get(), "", 0, entry);
  });
}

Result<image::NetnsEntry> StopLookingForDuplicates(int ns_fd,
                                                   const std::set<std::string>& but_for) {
  image::NetnsEntry before;
  const Status set = InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(const UniqueFd top, OpenAt(AT_FDCWD, kFolder, O_PATH | O_DIRECTORY));
    image::NetnsEntry all;
    const Status read = Walk(top.get(), "ipv6/conf", 0, all);
    if (!read.ok()) return ErrnoOf(read) == ENOENT ? OkStatus() : read;
    for (const image::NetSetting& setting : all.stasis_settings()) {
      constexpr std::string_view kFolderOfAll = "ipv6/conf/", kEnd = "/accept_dad";
      if (!setting.name().ends_with(kEnd)) continue;
      const std::string device = setting.name().substr(
          kFolderOfAll.size(), setting.name().size() - kFolderOfAll.size() - kEnd.size());
      if (but_for.contains(device)) continue;
      *before.add_stasis_settings() = setting;
      ASSIGN_OR_RETURN(const UniqueFd fd, OpenBelow(top.get(), setting.name(), O_WRONLY));
      RETURN_IF_ERROR(WriteAll(fd.get(), "0"));
    }
    return OkStatus();
  });
  RETURN_IF_ERROR(set);
  return before;
}

Status RestoreNetSettings(int ns_fd, const image::NetnsEntry& entry,
                          std::vector<std::string>& notes) {
  if (entry.stasis_settings_size() == 0) {
    notes.push_back("the settings (sysctl net) of its network namespace are those of a new one");
    return OkStatus();
  }
  std::vector<const image::NetSetting*> settings;
  for (const image::NetSetting& setting : entry.stasis_settings()) {
    if (setting.value().size() <= kLongestValue) settings.push_back(&setting);
  }
  std::ranges::stable_sort(settings, {}, [](const auto* setting) { return Order(*setting); });
  return InNamespace(ns_fd, CLONE_NEWNET, [&]() -> Status {
    ASSIGN_OR_RETURN(const UniqueFd top, OpenAt(AT_FDCWD, kFolder, O_PATH | O_DIRECTORY));
    return SetAll(top.get(), settings, notes);
  });
}

}  // namespace stasis::engine
