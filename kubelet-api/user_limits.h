// What one user may have under way.
#pragma once

namespace stasis::kubelet_api {

/// Of one user at once; all together have as many as there are connections, and checkpoints on a node.
struct UserLimits {
  int requests = 16;
  int checkpoints = 4;
};

}  // namespace stasis::kubelet_api
