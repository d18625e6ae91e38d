// What this machine's kernel and processor give the engine, for those who choose a machine.
#pragma once

#include <string>

namespace stasis::engine {

struct HostFeatures {
  /// "x86-64-v1" to "x86-64-v4" (the x86-64 psABI's levels), of the processor and what the kernel lets programs
  /// use of it: a program that was started on a higher level may use instructions that a lower one lacks.
  std::string cpu_level;
  /// PAGEMAP_SCAN (Linux 6.7): memory without content is passed over quickly.
  bool pagemap_scan = false;
  /// Asynchronous write-protection by userfaultfd(2) (Linux 6.7). With PAGEMAP_SCAN, the bulk of memory is saved
  /// while its program runs; without, all of it while the program stands still.
  bool userfaultfd_wp_async = false;
  std::string kernel_release;  ///< As uname(2) says it.
};

HostFeatures ReadHostFeatures();

}  // namespace stasis::engine
