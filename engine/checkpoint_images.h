// The image files of one checkpoint, read and checked, before anything is made of them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/base/packed_bytes.h"
#include "engine/base/status.h"
#include "engine/image/image_io.h"
#include "engine/image/schema/files.pb.h"
#include "engine/image/schema/inventory.pb.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/image/schema/tasks.pb.h"

namespace stasis::engine {

struct ThreadImage {
  pid_t tid = 0;          ///< In the container's pid namespace.
  image::CoreEntry core;  ///< Without extended registers.
  PackedBytes extended;   ///< Those, of arch::TakeExtended.
};

struct ProcessImage {
  image::PstreeEntry tree;
  bool zombie = false;
  std::vector<ThreadImage> threads;  ///< Leader first. A zombie has one, without registers.
  image::TaskKobjIdsEntry ids;
  image::MmEntry mm;
  image::FsEntry fs;
  std::vector<image::FdinfoEntry> descriptors;  ///< In rising order of their numbers.

  pid_t pid() const { return static_cast<pid_t>(tree.pid()); }
  pid_t parent() const { return static_cast<pid_t>(tree.ppid()); }
  const ThreadImage& leader() const { return threads.front(); }
};

struct CheckpointImages {
  image::InventoryEntry inventory;
  std::vector<ProcessImage> processes;  ///< Parents before children; the root is the first.
  std::vector<image::FileEntry> files;  ///< In rising order of type, then id: File() relies on it.
  image::SeccompEntry seccomp;
  std::vector<std::string>
      stdio;  ///< descriptors.json: what the root's 0, 1, 2 were; may be empty.

  /// The entry of files.img with that type and id, or null.
  const image::FileEntry* File(image::FdTypes type, std::uint32_t id) const;
  /// The path of the REG entry `id`; "" when there is none.
  std::string Path(std::uint32_t id) const;
  /// The ids of all threads, in the tree's pid namespace.
  std::vector<pid_t> TaskIds() const;
  /// Whether the tree had a mount namespace that was not the dumper's.
  bool HadOwnMounts() const;
  /// The numbers of the namespaces of a kind that processes are in and the root is not, rising.
  using NamespaceNumber = std::uint32_t (image::TaskKobjIdsEntry::*)() const;
  std::vector<std::uint32_t> OtherNamespaces(NamespaceNumber number) const;
  std::vector<std::uint32_t> OtherMountNamespaces() const {
    return OtherNamespaces(&image::TaskKobjIdsEntry::mnt_ns_id);
  }
};

/// Reads everything but memory pages and what belongs to single kinds of files. The errors name the
/// image file. InvalidArgument: images that contradict each other (a thread twice, a child without
/// parent, areas that overlap) or no checkpoint. DataLoss: a file is cut or missing. Unimplemented: what
/// we cannot restore (memory shared by processes, nested namespaces). FailedPrecondition: another
/// architecture. ResourceExhausted: more tasks or files than any container has.
Result<CheckpointImages> LoadCheckpoint(const ImageSource& source);

}  // namespace stasis::engine
