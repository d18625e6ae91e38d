// The open files of a tree under restore, and the descriptor tables of its processes.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/files/file_kind.h"
#include "engine/mounts/mount_namespaces.h"
#include "engine/tasks/other_namespaces.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// Restores every open file description once, in a table of ours, acting through the root process (with
/// its rights and namespaces); then gives each process its own.
class FileRestorer {
 public:
  virtual ~FileRestorer() = default;

  /// Opens everything that files.img lists for a descriptor of some process. `root` must still have its
  /// first descriptors 0 to 2, which take the place of pipes to a starter outside the tree. Raises our own
  /// soft limit of open files (RLIMIT_NOFILE) to the hard one.
  virtual Status RestoreAll() = 0;
  /// Gives `leader`, that of a session, the terminal that controls it, if that is one of the tree's.
  virtual Status TakeTerminal(RestoredProcess& leader) = 0;
  /// Opens REG or MEMFD entry `id` of files.img with `flags` to be mapped in `process`; the number is in
  /// its table. What has no path was opened by RestoreAll().
  virtual Result<int> OpenMapped(RestoredProcess& process, std::uint32_t id, int flags) = 0;
  /// Programs, working directories and mapped files without a path, from RestoreAll() to Finish().
  virtual const PathlessFiles& pathless() const = 0;
  /// Removes the names that the dump gave to files which had lost theirs. Once nothing can fail any more.
  virtual Status RemoveLinks() = 0;
  /// All processes of the tree, before the first Install(); they outlive Finish().
  virtual void SetTree(std::span<const RestoredProcess> processes) = 0;
  /// Gives `process` its descriptor table: exactly the numbers and flags of its image, nothing else. Its
  /// soft RLIMIT_NOFILE is raised to the hard one. FailedPrecondition: that one is too low.
  virtual Status Install(RestoredProcess& process) = 0;
  /// What needs all tables and threads to be there (epoll targets, owners for signals). Once, after every
  /// Install; our own descriptors are closed by it. Locks and seals come with it.
  virtual Status Finish(std::vector<RestoredProcess>& processes) = 0;

  /// Lets TCP connections go on: the last step before the tree runs, since their peers hear of it. Until
  /// then closing them is silent. `make_rules` as in tcp_connection.h.
  virtual Status ResumeConnections(const std::function<Status()>& make_rules) = 0;

  /// What the report has to say of the files.
  virtual const std::vector<std::string>& notes() const = 0;
};

/// `images`, `source`, `mounts` and `namespaces` outlive the restorer; `root` must stay where it is until RestoreAll() has ended.
std::unique_ptr<FileRestorer> MakeFileRestorer(RestoredProcess& root,
                                               const CheckpointImages& images,
                                               const ImageSource& source, const Options& options,
                                               const MountNamespaces* mounts = nullptr,
                                               const OtherNamespaces* namespaces = nullptr);

/// Opens the absolute `path` with `flags` in `process`, with its rights and in its root. The number is in
/// its table. Uses the argument room of `process.remote` and gives all of it back.
Result<int> OpenInProcess(RestoredProcess& process, const std::string& path, int flags);

}  // namespace stasis::engine
