// What a dump knows of one process of the frozen tree; becomes its images.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/image/schema/tasks.pb.h"
#include "engine/memory/dump_areas.h"
#include "engine/tasks/kernel_tasks.h"
#include "engine/tasks/seccomp_filter.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {

struct DumpedThread {
  FrozenThread* frozen = nullptr;  ///< As long as the tree is there, also thawed; none of a zombie.
  arch::Registers registers;
  /// The thread stood in a restartable sequence: `registers` lead to its abort handler, and so must
  /// the live thread's before anything else runs in it.
  bool sequence_aborted = false;
  const SeccompChain* filters =
      nullptr;            ///< Of SeccompDumper, once it was asked; null without any.
  image::CoreEntry core;  ///< Not whole before TakeCore(): of many threads that would be much.
  /// Of BesideLook; empty where it did not look, or what it saw is not to be believed.
  std::optional<KernelTask> in_kernel;
};

struct DumpedProcess {
  FrozenProcess* frozen = nullptr;  ///< Until the tree is thawed.
  bool zombie = false;
  image::PstreeEntry tree;
  image::TaskKobjIdsEntry ids;
  std::vector<DumpedThread> threads;  ///< As in `frozen`; a zombie has one, with `core` alone.
  std::vector<Area> areas;
  image::MmEntry mm;
  image::FsEntry fs;
};

}  // namespace stasis::engine
