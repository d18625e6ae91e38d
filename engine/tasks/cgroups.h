// Cgroups below that of the tree: which task is in which, the directories and their settings.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "engine/base/user_ids.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/inventory.pb.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/options.h"
#include "engine/proc/cgroup.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tasks/restore_attributes.h"

namespace stasis::engine {

/// A hierarchy of version 1 ("cpu,cpuacct", "name=systemd") or version 2 (""), opened at the root that our
/// cgroup namespace has, wherever it is mounted. A named one that is not there is made.
Result<UniqueFd> OpenHierarchy(const std::string& controllers);

class CgroupDumper {
 public:
  /// What the tree's own cgroups are below: of a container its own, on the host ours.
  static Result<CgroupDumper> Create(const FrozenProcess& root, const Options& options);

  /// Notes that thread `tid` is where its file `cgroup` says.
  Status Add(pid_t tid, const std::string& cgroups);
  /// Reads the directories and settings, and gives each thread the number of its set. Nothing, when all
  /// are where the tree as a whole is.
  Status Read(std::vector<DumpedProcess>& processes);
  Status WriteImage(image::InventoryEntry& inventory, ImageSink& sink) const;

 private:
  Status ReadController(const std::string& controllers, const std::vector<std::string>& tops);
  std::vector<std::string> TopsOf(const std::string& controllers) const;

  bool ignore_ = false;
  bool is_container_ = false;
  UserIds ids_;
  CgroupSet base_;
  CgroupSet namespace_root_;  // of a cgroup namespace that the tree has for itself
  std::map<std::string, std::uint32_t> by_text_;  // number of a set, by the text of /proc
  std::map<CgroupSet, std::uint32_t> sets_;
  std::map<pid_t, std::uint32_t> of_thread_;
  image::CgroupEntry entry_;
};

/// Puts tasks where they were, and makes what is missing there. What it made it takes away again, unless
/// told to Keep() it.
class CgroupRestorer {
 public:
  /// Makes directories and settings; reads the place of `placeholder`, the root that is to be.
  static Result<std::unique_ptr<CgroupRestorer>> Create(const CheckpointImages& images,
                                                        const ImageSource& source,
                                                        const Options& options, pid_t placeholder,
                                                        Notes& notes);
  ~CgroupRestorer();

  /// On the host: gives `root`, before it has children, a cgroup namespace with the root that its own had.
  Status MakeNamespace(RestoredProcess& root, const CheckpointImages& images);
  /// Moves a process, with the threads that it has; before it has children, who are then where it is.
  Status Move(const RestoredProcess& process);
  /// Sets what version 2 allows only when all are in their places.
  Status SetLater();
  /// Moves those threads that are elsewhere than their leaders.
  Status MoveThreads(const std::vector<RestoredProcess>& processes);
  void Keep() { made_.clear(); }

 private:
  struct Hierarchy {
    UniqueFd root;
    std::string image_base, live_base;
  };
  using Sets = std::map<std::uint32_t, CgroupSet>;

  CgroupRestorer(const Options& options, Notes& notes) : options_(options), notes_(notes) {}
  Status ReadBases(const CheckpointImages& images, pid_t placeholder);
  Status MakeController(const image::CgControllerEntry& controller);
  Status MakeFolder(const Hierarchy& hierarchy, const image::CgroupDirEntry& entry,
                    const std::string& path, bool is_v2, int depth);
  Status Make(const Hierarchy& hierarchy, const std::string& path);
  Status Set(const Hierarchy& hierarchy, const image::CgroupDirEntry& entry,
             const std::string& path);
  Result<std::string> LivePath(const Hierarchy& hierarchy, const std::string& path) const;
  Result<Hierarchy*> Find(const std::string& controllers);
  Status MoveInto(const Hierarchy& hierarchy, const std::string& image_path, pid_t task,
                  const char* file);
  Status MoveTask(std::uint32_t set, pid_t task, const char* file);

  const Options& options_;
  Notes& notes_;
  UserIds ids_;
  bool is_container_ = false;
  std::uint32_t base_set_ = 0;
  bool moved_ = false;  // some task: its children are not where the root began
  CgroupSet live_;
  Sets sets_;
  std::map<std::string, std::string> namespace_roots_;  // as the image has them
  std::map<std::string, Hierarchy> hierarchies_;
  image::CgroupEntry entry_;
  struct Later {
    Hierarchy* hierarchy;
    const image::CgroupDirEntry* entry;
    std::string path;
  };
  std::vector<Later> later_;  // settings of version 2, from above to below
  std::vector<std::pair<int, std::string>> made_;
};

}  // namespace stasis::engine
