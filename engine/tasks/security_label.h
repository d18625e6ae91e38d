// The label that a Linux security module gave a task: an AppArmor profile or an SELinux context.
#pragma once

#include <string>
#include <string_view>

#include "engine/base/status.h"
#include "engine/checkpoint_images.h"
#include "engine/image/schema/inventory.pb.h"
#include "engine/tasks/restore_attributes.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// The module of this machine that labels tasks; LSM_NO_LSM when there is none that we know.
image::Lsmtype ActiveModule();

/// The label in the text of /proc/PID/attr/…: without the mode that AppArmor puts behind it and without line ends.
/// An unconfined task's is "unconfined".
std::string ParseLabel(image::Lsmtype module, std::string_view text);

/// What is to be put into CredsEntry.lsm_profile, of thread `tid` below the directory `proc` of its process: "" for
/// an unconfined one, and where no module is active.
Result<std::string> ReadLabel(int proc, pid_t tid);

/// The label of a live task, "unconfined" where it has none.
Result<std::string> ReadLiveLabel(pid_t tid);

/// The program that `process` is about to execute gets no profile of its own where the process has none: AppArmor
/// chooses one by the program's path, but the original may have been started before that was there.
Status ExecuteUnconfined(RestoredProcess& process);

/// Which label each thread of a tree under restore is to get.
///
/// A container has the label that its runtime gave it, whatever the original had: what had the label of the
/// original's root has the live one. A thread that had another one, and on the host each, asks the kernel for it, which
/// decides by the rights that it has.
class Labels {
 public:
  /// `root` is what becomes the tree's root, as it was started. `on_host`: no runtime chose its label.
  static Result<Labels> Create(const CheckpointImages& images, pid_t root, bool on_host);

  /// False when a thread that was just made has what it is to have.
  bool IsToChange(const ThreadImage& thread) const { return WantedOf(thread) != live_; }

  /// Last of all that calls in the thread need rights for. FailedPrecondition: it does not get the label.
  Status Give(const ThreadImage& thread, RemoteSyscalls& remote) const;

 private:
  std::string WantedOf(const ThreadImage& thread) const;

  image::Lsmtype module_ = image::LSM_NO_LSM;
  bool known_ = false;  // the images tell labels
  bool on_host_ = false;
  std::string live_, root_;
};

}  // namespace stasis::engine
