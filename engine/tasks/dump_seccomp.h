// Seccomp filters of the tree: seccomp.img.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/image/image_io.h"
#include "engine/tasks/dumped_process.h"
#include "engine/tasks/seccomp_filter.h"

namespace stasis::engine {

class SeccompDumper {
 public:
  /// Reads the filters of every thread of `process` into its cores, and lifts them until we let go.
  Status Add(DumpedProcess& process);
  /// seccomp.img, when there is a filter.
  Status WriteImage(ImageSink& sink) const;

 private:
  using Known = std::map<SeccompChain, std::uint32_t>;  // chain to the index of its oldest filter

  static Result<SeccompChain> ReadChain(const FrozenThread& thread);
  const Known::value_type& Note(const SeccompChain& chain);

  Known known_;
  image::SeccompEntry entry_;
};

}  // namespace stasis::engine
