#include "engine/dump_watch.h"

namespace stasis::engine {

Status StillWanted(const DumpRequest& request) {
  if (request.stop.stop_requested()) return Cancelled("the checkpoint was cancelled");
  if (std::chrono::steady_clock::now() >= request.deadline) {
    return DeadlineExceeded("the checkpoint did not end in the time given to it");
  }
  return OkStatus();
}

}  // namespace stasis::engine
