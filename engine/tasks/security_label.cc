// Labels of Linux security modules.
//
// State    /proc/PID/attr/apparmor/current (Linux 5.8), /proc/PID/attr/current; of each thread its own
// Restore  "changeprofile NAME" written there by the thread itself (aa_change_profile(2))
// Rule     AppArmor lets an unconfined task change to any profile, also with no_new_privs; a confined one needs a rule
//          for it (aa_change_profile() in security/apparmor/domain.c). From then on the profile decides, also about
//          setuid(2) and capset(2): so it comes last.
// Rule     Only the thread itself may write, and only through a descriptor that it opened with the same memory
//          (proc_pid_attr_write() in fs/proc/base.c).
// Rule     "exec NAME" in attr/apparmor/exec is for the next execve(2) alone.
// Not here SELinux contexts are noted and compared, but never changed; Smack and Landlock are not looked at.
// Source   proc_pid_attr(5), security/apparmor/lsm.c; tested on 6.1
#include "engine/tasks/security_label.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <cerrno>

#include "engine/base/io.h"
#include "engine/files/restore_files.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::string_view kUnconfined = "unconfined";
const std::string kAppArmor = "attr/apparmor/";

std::string PathOfLabel(image::Lsmtype module) {
  return module == image::LSM_APPARMOR ? kAppArmor + "current" : "attr/current";
}

image::Lsmtype FindModule() {
  // EINVAL: the module is there, but not active.
  if (ReadFileAt(AT_FDCWD, "/proc/self/" + PathOfLabel(image::LSM_APPARMOR)).ok()) {
    return image::LSM_APPARMOR;
  }
  const Result<std::string> text =
      ReadFileAt(AT_FDCWD, "/proc/self/" + PathOfLabel(image::LSM_SELINUX));
  // USER:ROLE:TYPE, as soon as there is a policy; Smack's labels are single words.
  return text.ok() && text->find(':') != std::string::npos ? image::LSM_SELINUX : image::LSM_NO_LSM;
}

std::string_view NameOf(image::Lsmtype module) {
  return module == image::LSM_APPARMOR ? "AppArmor profile" : "SELinux context";
}

const std::string& ProfileOf(const ThreadImage& thread) {
  return thread.core.thread_core().creds().lsm_profile();
}

Status Write(RemoteSyscalls& remote, const std::string& path, const std::string& text) {
  remote.ResetArguments();
  ASSIGN_OR_RETURN(const std::uint64_t path_at, remote.Put(path));
  ASSIGN_OR_RETURN(const std::uint64_t fd, remote.Call("open " + path, SYS_openat, AT_FDCWD,
                                                       path_at, O_WRONLY | O_CLOEXEC));
  ASSIGN_OR_RETURN(const std::uint64_t text_at, remote.Put(text));
  const Status written = remote.Call("write " + path, SYS_write, fd, text_at, text.size()).status();
  RETURN_IF_ERROR(remote.Call("close", SYS_close, fd).status());
  return written;
}

}  // namespace

image::Lsmtype ActiveModule() {
  static const image::Lsmtype kModule = FindModule();  // chosen at boot
  return kModule;
}

std::string ParseLabel(image::Lsmtype module, std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\0')) text.remove_suffix(1);
  if (module == image::LSM_APPARMOR && text.ends_with(')')) {
    if (const auto mode = text.rfind(" ("); mode != text.npos) text = text.substr(0, mode);
  }
  return std::string(text);
}

Result<std::string> ReadLabel(int proc, pid_t tid) {
  const image::Lsmtype module = ActiveModule();
  if (module == image::LSM_NO_LSM) return std::string();
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFileAt(proc, "task/" + std::to_string(tid) + "/" + PathOfLabel(module)));
  std::string label = ParseLabel(module, text);
  return label == kUnconfined ? std::string() : label;
}

Result<std::string> ReadLiveLabel(pid_t tid) {
  const image::Lsmtype module = ActiveModule();
  if (module == image::LSM_NO_LSM) return std::string(kUnconfined);
  ASSIGN_OR_RETURN(const std::string text, ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(tid) +
                                                                    "/" + PathOfLabel(module)));
  return ParseLabel(module, text);
}

Status ExecuteUnconfined(RestoredProcess& process) {
  if (ActiveModule() != image::LSM_APPARMOR) return OkStatus();
  ASSIGN_OR_RETURN(const std::string live, ReadLiveLabel(process.pid));
  if (live != kUnconfined) return OkStatus();  // its profile says what becomes of it
  const Status status = Write(*process.remote, "/proc/self/" + kAppArmor + "exec",
                              "exec " + std::string(kUnconfined));
  // Without a /proc below its root directory: what became of its label is seen in the end.
  return ErrnoOf(status) == ENOENT ? OkStatus() : status;
}

Result<Labels> Labels::Create(const CheckpointImages& images, pid_t root, bool on_host) {
  Labels labels;
  labels.module_ = ActiveModule();
  labels.on_host_ = on_host;
  labels.root_ = ProfileOf(images.processes.front().leader());
  ASSIGN_OR_RETURN(labels.live_, ReadLiveLabel(root));
  const image::Lsmtype then = images.inventory.lsmtype();
  labels.known_ = then == labels.module_ && then != image::LSM_NO_LSM;
  if (labels.known_ || then == image::LSM_NO_LSM) return labels;
  for (const ProcessImage& process : images.processes) {
    if (process.zombie) continue;
    for (const ThreadImage& thread : process.threads) {
      const std::string& profile = ProfileOf(thread);
      if (profile.empty() || (!on_host && profile == labels.root_)) continue;
      return FailedPrecondition("tid " + std::to_string(thread.tid) + " had the " +
                                std::string(NameOf(then)) + " " + profile +
                                ", and that security module is not active on this machine");
    }
  }
  return labels;
}

std::string Labels::WantedOf(const ThreadImage& thread) const {
  const std::string& profile = ProfileOf(thread);
  if (!known_ || (!on_host_ && profile == root_)) return live_;
  if (!profile.empty()) return profile;
  return module_ == image::LSM_APPARMOR ? std::string(kUnconfined) : live_;
}

Status Labels::Give(const ThreadImage& thread, RemoteSyscalls& remote) const {
  if (module_ == image::LSM_NO_LSM) return OkStatus();
  const std::string wanted = WantedOf(thread);
  const pid_t tid = remote.tracee().tid();
  ASSIGN_OR_RETURN(std::string live, ReadLiveLabel(tid));
  if (live == wanted) return OkStatus();
  const std::string what = std::string(NameOf(module_)) + " " + wanted;
  if (module_ == image::LSM_SELINUX) {
    return FailedPrecondition("the " + what + " is not this task's, which is " + live +
                              "; start stasis restore with runcon(1) in the one that it had");
  }
  const Status changed =
      Write(remote, "/proc/thread-self/" + PathOfLabel(module_), "changeprofile " + wanted);
  if (ErrnoOf(changed) == ENOENT) {
    return FailedPrecondition("the " + what +
                              " is not loaded, or there is no /proc below the root directory; load "
                              "it (apparmor_parser(8)) as it was when the checkpoint was made");
  }
  if (!changed.ok()) {
    return FailedPrecondition("the " + what + " is not for this task to take, whose profile is " +
                              live + " (" + Message(changed) + ")");
  }
  ASSIGN_OR_RETURN(live, ReadLiveLabel(tid));
  return live == wanted ? OkStatus()
                        : Internal("the task was to get the " + what + " and has " + live);
}

}  // namespace stasis::engine
