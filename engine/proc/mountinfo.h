// Text of /proc/PID/mountinfo into structs, proc_pid_mountinfo(5). No system call is made here.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/status.h"

namespace stasis::engine {

struct Mount {
  int id = 0;
  int parent = 0;  ///< `id` itself, or one that is not listed, at the root of the reader's view.
  std::uint32_t dev_major = 0, dev_minor = 0;
  std::string root;                      ///< The directory of the file system that is mounted.
  std::string mountpoint;                ///< Below the reader's root directory.
  std::string options;                   ///< "rw,nosuid,…": the mount's own.
  std::vector<std::string> propagation;  ///< "shared:1", "master:2", "unbindable", …
  std::string fs_type;
  std::string source;
  std::string super_options;  ///< The file system's.
};

/// In the order of the text. The octal escapes of blanks and backslashes are undone.
Result<std::vector<Mount>> ParseMountinfo(std::string_view text);

}  // namespace stasis::engine
