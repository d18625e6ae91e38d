// What only a process itself can tell: asked by system calls that its stopped threads make for us.
#pragma once

#include <span>
#include <string>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

/// Host and domain name of the process's uts namespace.
struct UtsNames {
  std::string node, domain;
};

/// Completes the cores and memory entries of `processes`, none of them a zombie; they answer at the same
/// time. Afterwards their threads stand where they stood, and nothing of ours is left in them. `uts_names`, of
/// the first: null when not wanted.
Status AskInside(std::span<DumpedProcess*> processes, const FileDumpContext& files,
                 UtsNames* uts_names);

/// What it would have answered, by the kernel's own structures.
void TakeFromKernel(const KernelTask& task, image::CoreEntry& core);

}  // namespace stasis::engine
