// The network and UTS namespaces of a tree under restore, where its processes are in several.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/tasks/restored_process.h"

namespace stasis::engine {

class OtherNamespaces {
 public:
  /// Takes the one of `kind` (CLONE_NEWNET, CLONE_NEWUTS) that the process of the directory /proc/PID `proc` is in, as
  /// `number`; the first of a kind is that of the tree's root. Where there is one alone, nothing here does anything.
  Status Add(int proc, int kind, std::uint32_t number);

  /// Puts `process` into the one of that number; 0: that of the root. Uses the argument room of `process.remote`.
  Status Enter(RestoredProcess& process, int kind, std::uint32_t number) const;

  /// Puts `process` into those of its image.
  Status EnterOwn(RestoredProcess& process) const;

 private:
  struct Namespace {
    int kind = 0;
    std::uint32_t number = 0;
    UniqueFd fd;
    ino_t inode = 0;
  };
  std::vector<Namespace> all_;
};

}  // namespace stasis::engine
