// Many runs of pages, read with few system calls.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "engine/base/status.h"
#include "engine/memory/page_map.h"

namespace stasis::engine {

/// Gathers pieces of a source in a buffer and hands it on whenever that is full.
class PageCopier {
 public:
  using Take = std::function<Status(std::span<const std::byte>)>;

  /// `pid`: the process whose memory is read, with `fd` its /proc/PID/mem for what it may not read
  /// itself; 0: `fd` is a file.
  PageCopier(pid_t pid, int fd, Take take);

  /// `copied_on_write`: the process may have them in common with its parent or children.
  Status Add(PageRange pages, bool copied_on_write);
  /// Hands on what is left.
  Status Flush();

 private:
  Status Fill();

  pid_t pid_;
  int fd_;
  Take take_;
  std::vector<std::byte> buffer_;
  std::vector<iovec> pieces_;
  std::size_t used_ = 0;
  bool copied_on_write_ = false;  // of all pieces
};

}  // namespace stasis::engine
