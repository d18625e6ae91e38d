// The open files of a frozen tree: descriptor tables, and everything else that names a file
// (executable, directories, mappings).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "engine/dump.h"
#include "engine/files/file_kind.h"
#include "engine/files/io_uring.h"
#include "engine/files/kept_links.h"
#include "engine/files/network_lock.h"
#include "engine/files/tcp_hold.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/tasks.pb.h"
#include "engine/memory/dump_areas.h"
#include "engine/mounts/autofs.h"
#include "engine/tasks/dump_namespaces.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

/// A memory file whose content is to be saved.
struct MemoryFile {
  UniqueFd own;       ///< Open to be read; else ...
  int borrowed = -1;  ///< ... one of the tree's open files, whose offset is not ours to move.
};

class FileDumper : public FileDumpContext {
 public:
  /// `tree` and `options` outlive the dumper; notes go to `notes`.
  static Result<std::unique_ptr<FileDumper>> Create(const FrozenTree& tree, const Options& options,
                                                    Fate fate, std::vector<std::string>& notes);

  /// What the tree's namespaces are called in the images, and what else its processes are in; before Collect().
  /// `namespaces` outlives the dumper.
  Status SetNamespaces(const NamespaceDumper& namespaces);
  /// Borrows every open file description of the tree once, and reads the descriptor tables. `table_ids`:
  /// of each process, equal where processes share one; 0 for a zombie.
  Status Collect(std::vector<std::uint32_t> table_ids);
  /// Asks the kind of each file for its entry. Unimplemented for what cannot be restored.
  Status DumpAll();
  /// Reads how autofs mounts of the tree's own and their daemons are connected; after Collect(). Unimplemented: a
  /// daemon that is not in the tree. FailedPrecondition: one is just asked for something.
  Status DumpAutofs();
  /// The entry of one. A socket's has the network that it is in.
  Result<image::FileEntry> DumpOne(const OpenFile& file);
  /// The id of a REG entry for what the link `path` in /proc/PID of `process` leads to ("exe",
  /// "cwd", "map_files/…"), opened with `flags` when it is restored. One entry for equal files.
  Result<std::uint32_t> AddLink(const FrozenProcess& process, const std::string& path,
                                std::uint32_t flags);

  /// The same for the file that `area` maps, whose entry gets its id and the mode to open it with.
  Status AddMapping(const FrozenProcess& process, Area& area);

  /// True when a TCP socket is connected, or was until a moment ago: it comes back closed.
  bool HasConnections() const;
  /// The memory files whose content is to be saved, by id. Before GiveBack().
  std::map<std::uint64_t, MemoryFile>& memory_files() { return memory_files_; }

  /// Lets TCP connections that stand still go on as they were. The destructor does too.
  void ResumeConnections() { connections_.clear(); }
  /// Has what arrives for connections with a peer outside the tree dropped, under the run id of the
  /// inventory, until a restore. Nothing where there are none. Before GiveBack().
  Result<std::optional<NetworkLock>> LockNetwork(const std::string& run_id) const;
  /// The tree has ended: its connections close without a word to their peers.
  void AbandonConnections();

  /// Closes what was borrowed, before the tree runs on or ends: no pipe or socket may stay open
  /// because of us.
  void GiveBack();

  /// files.img, fdinfo-ID.img of each descriptor table, shared images, and descriptors.json.
  Status WriteImages(ImageSink& sink) const;

  /// The tree runs: see FileDumpContext::only_looks.
  void OnlyLook() { only_looks_ = true; }

  /// Of a tree that does not run on: names for inodes that lost the one they were opened by. Made when the
  /// images are written; the caller commits them.
  KeptLinks& links() { return kept_links_; }

  const Options& options() const override { return options_; }
  bool only_looks() const override { return only_looks_; }
  std::span<const OpenFile> files() const override { return files_; }
  Result<std::uint32_t> IdOf(int fd) const override;
  int RootOf(const OpenFile& file) const override;
  int OtherMountOf(const OpenFile& file) const override;
  std::string InRoot(std::string link) const override;
  pid_t ToNamespacePid(pid_t pid) const override;
  bool IsOfTree(pid_t ns_pid) const override;
  bool IsProcess(pid_t pid) const override;
  std::uint32_t NamespaceId(std::uint32_t type, std::uint64_t inode) const override;
  const UserIds& ids() const override;
  std::uint32_t NewFileId() override { return next_id_++; }
  void AddEntry(image::FileEntry entry) override { entries_.push_back(std::move(entry)); }
  void AddRecord(std::string_view image_name, std::string record, std::string bytes) override;
  Result<bool> SaveMemoryFile(std::uint64_t id, int fd) override;
  std::vector<TcpHold>& Connections() override { return connections_; }
  void Note(std::string text) override { notes_.push_back(std::move(text)); }
  bool IsExternalStdio(const OpenFile& file) const override;
  bool IsOfAutofs(const OpenFile& file) const override;
  std::map<RemapKey, image::RemapFilePathEntry>& Remaps() override { return remaps_; }
  std::map<std::string, std::shared_ptr<void>, std::less<>>& Found() override { return found_; }
  KeptLinks* kept_links() override { return fate_ == Fate::kLeaveRunning ? nullptr : &kept_links_; }

 private:
  Status Describe(OpenFile& file) const;
  static Result<std::string> OurFdinfo(int fd);
  Status AddSocketMapping(Area& area);
  struct Descriptor {
    std::size_t file = 0;  // index in files_
    int fd = -1;
    bool close_on_exec = false;
  };
  // Equal keys are told apart by kcmp(2).
  struct FileKey {
    std::uint64_t device, inode, pos;
    std::uint32_t flags;
    int borrowed;
  };
  struct SameFile {
    bool operator()(const FileKey& a, const FileKey& b) const;
  };

  FileDumper(const FrozenTree& tree, const Options& options, Fate fate,
             std::vector<std::string>& notes)
      : tree_(tree), options_(options), fate_(fate), notes_(notes) {}
  Status OpenRoots();
  Status CheckFolder(const FrozenProcess& process, const std::string& path,
                     const OpenFile& file) const;
  Status CollectTable(const FrozenProcess& process);
  Status CollectDescriptor(const FrozenProcess& process, int pidfd, int fd);
  Status CollectPassed();
  Status CheckTerminals() const;
  Status FindDaemon(AutofsOptions& options) const;
  Status CollectFromMessage(std::size_t socket, int fd);
  Status CollectLocks(const OpenFile& file, bool is_new);
  std::string DescriptorsJson() const;

  const FrozenTree& tree_;
  const Options& options_;
  const Fate fate_;
  std::vector<std::string>& notes_;
  std::uint32_t next_id_ = 1;
  bool only_looks_ = false;
  RingFrames rings_;

  UniqueFd root_;            // directory of the tree's root process
  std::string root_prefix_;  // of the tree's root directory, as we see it; "" for "/"
  std::map<pid_t, pid_t> namespace_pids_;

  std::vector<OpenFile> files_;
  std::vector<image::FdTypes> types_;  // of files_, once dumped
  std::vector<std::uint32_t> table_ids_;
  std::vector<std::vector<Descriptor>> tables_;  // by process; the first has what several share
  std::map<FileKey, std::size_t, SameFile> known_;

  struct OtherMounts {
    std::uint32_t number = 0;
    UniqueFd root;
    std::set<int> mounts;
  };
  const OtherMounts* OtherOf(int mnt_id) const;
  const OtherMounts* OtherOfProcess(pid_t pid) const;
  std::vector<OtherMounts> other_mounts_;
  std::map<pid_t, std::uint32_t> elsewhere_;  // numbers of these, by our pids

  // Device, inode, path, flags, and the number of the mount namespace or 0.
  using LinkKey =
      std::tuple<std::uint64_t, std::uint64_t, std::string, std::uint32_t, std::uint32_t>;
  std::map<LinkKey, std::uint32_t> links_;     // by what stat(2) says
  std::map<LinkKey, std::uint32_t> mappings_;  // by what smaps says

  // POSIX locks that were seen: process, device, inode, first and last byte.
  using LockKey = std::tuple<pid_t, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;
  std::set<LockKey> locks_;

  std::set<std::pair<dev_t, ino_t>> leased_;
  std::map<RemapKey, image::RemapFilePathEntry> remaps_;
  KeptLinks kept_links_;
  const NamespaceDumper* namespaces_ = nullptr;
  const OpenFile* dumping_ = nullptr;  // of files_
  std::map<std::string, std::shared_ptr<void>, std::less<>> found_;
  std::map<std::uint64_t, MemoryFile> memory_files_;
  std::vector<TcpHold> connections_;
  std::vector<image::FileEntry> entries_;
  std::map<std::string, ImageFileBuilder, std::less<>> shared_images_;
  std::map<std::uint32_t, image::AutofsEntry> autofs_;  // by the device of the mount
};

}  // namespace stasis::engine
