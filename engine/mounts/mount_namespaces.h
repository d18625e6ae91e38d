// The mount namespaces of a tree under restore, where its processes are in several.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/image/schema/namespaces.pb.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

/// The entries of mountpoints-NUMBER.img.
struct NamespaceMounts {
  std::uint32_t number = 0;
  std::vector<image::MntEntry> mounts;
};

class MountNamespaces {
 public:
  /// True where all processes are in that of the root: then nothing here does anything.
  bool empty() const { return all_.size() < 2; }

  /// Takes the one that `root` is in by now, as that of `mounts`; the first is that of the tree's root.
  Status Add(const RestoredProcess& root, const NamespaceMounts& mounts);

  /// Puts `process`, which shares its directories with nobody (unshare(2) CLONE_FS), into that one. Its root and
  /// working directory are the root of that then. Uses the argument room of `process.remote`.
  Status Enter(RestoredProcess& process, std::uint32_t number) const;

  /// Puts `process` into that of the tree's root.
  Status GoHome(RestoredProcess& process) const {
    return empty() ? OkStatus() : Enter(process, all_.front().number);
  }

  /// Takes the first of `other`.
  void Take(MountNamespaces&& other) { all_.push_back(std::move(other.all_.front())); }

  /// The number of the namespace that has the mount `mnt_id` of the images; that of the root when none has.
  std::uint32_t NumberOf(std::int32_t mnt_id) const;

  /// The directory that is its root, and is the machine's to look at from outside; -1 when it is unknown.
  int RootOf(std::uint32_t number) const;

 private:
  struct Namespace {
    std::uint32_t number = 0;
    UniqueFd fd, root;
    ino_t inode = 0;
    std::set<std::uint32_t> mounts;
  };
  const Namespace* Find(std::uint32_t number) const;

  std::vector<Namespace> all_;
};

}  // namespace stasis::engine
