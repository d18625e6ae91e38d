// What must be known of restored containers for as long as they exist, whatever becomes of us.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"

namespace stasis::cri {

/// kFresh: begun anew by its own program, since an earlier one of it had been restored.
enum class RestorePhase { kCreated, kRestoring, kRestored, kFailed, kFresh };

/// Whether the container is what it is to be: there is nothing to restore in it (any more).
bool IsWhole(RestorePhase phase);

/// "created", "restoring", …
std::string_view PhaseText(RestorePhase phase);

/// Where a checkpoint's files are, and what keeps them there.
struct CheckpointPlace {
  std::string path = {};  ///< An archive, or a directory with the members of one.
  std::string snapshotter =
      {};  ///< With the two below: a view in containerd that is to be given back.
  std::string snapshot_key = {};  ///< Also the name of the lease that holds it. Empty: no view.
};

struct RestoredContainer {
  std::string id;
  RestorePhase phase = RestorePhase::kCreated;
  std::string failure;  ///< Why it could not be restored (kFailed).

  std::string
      sandbox_id;  ///< With name and attempt: what makes a repeated CreateContainer the same.
  std::string pod_uid;
  std::string pod_namespace;  ///< Empty, as the next, in records of an agent that did not keep it.
  std::string pod;
  std::string name;
  std::uint32_t attempt = 0;

  std::string image;  ///< As the client asked for it, in the next three.
  std::string user_specified_image;
  std::string image_ref;
  std::string image_id;
  std::vector<std::string> command;  ///< Of the live request, in place of the placeholder's.
  std::vector<std::string> args;

  CheckpointPlace checkpoint;
  std::string log_path;             ///< On the host; empty: the container has no log.
  bool clocks_may_go_back = false;  ///< As the pod's annotations say, in the next, too.
  bool lazy_pages = false;
};

/// All records, in memory and as one small file each. Threads may share it.
class Records {
 public:
  /// Reads what is in `directory`, which is made when missing. A file that cannot be read is an
  /// error: to forget a container would let it be shown and started as what it is not.
  static Result<std::unique_ptr<Records>> Open(const std::string& directory);

  /// Durable when it returns.
  Status Put(const RestoredContainer& record);
  Status Remove(const std::string& id);

  /// By id, or by an unambiguous beginning of it, which runtimes also take.
  std::optional<RestoredContainer> Find(const std::string& id) const;
  std::optional<RestoredContainer> FindByName(const std::string& sandbox_id,
                                              const std::string& name, std::uint32_t attempt) const;
  /// Whether a container of this name ran in this pod, in whichever sandbox: restored, or anew after that.
  bool HasRun(const std::string& pod_uid, const std::string& name) const;
  std::vector<RestoredContainer> All() const;
  bool empty() const { return size_ == 0; }

 private:
  explicit Records(UniqueFd directory) : directory_(std::move(directory)) {}

  UniqueFd directory_;
  mutable std::mutex mutex_;
  std::map<std::string, RestoredContainer> records_;
  std::atomic<std::size_t> size_ = 0;  // of records_, for the many calls that need nothing of them
};

}  // namespace stasis::cri
