// What only a process itself can tell: asked by system calls that its stopped threads make for us.
#pragma once

#include <string>

#include "engine/base/status.h"
#include "engine/files/file_kind.h"
#include "engine/tasks/dumped_process.h"

namespace stasis::engine {

/// Host and domain name of the process's uts namespace.
struct UtsNames {
  std::string node, domain;
};

/// Completes the cores and memory entry of `process`, which must not be a zombie. Afterwards its
/// threads stand where they stood, and nothing of ours is left in it. `uts_names`: null when not
/// wanted.
Status AskInside(DumpedProcess& process, const FileDumpContext& files, UtsNames* uts_names);

}  // namespace stasis::engine
