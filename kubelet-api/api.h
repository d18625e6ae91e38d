// The REST API of the agent (docs/rest-api.md).
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cri/agent.h"
#include "engine/base/status.h"
#include "kubelet-api/access/api_server.h"
#include "kubelet-api/image_pusher.h"
#include "kubelet-api/transport/tls.h"
#include "kubelet-api/user_limits.h"

namespace stasis::kubelet_api {

struct ApiOptions {
  std::string listen;  ///< "127.0.0.1:10260", "[::]:10260"; empty: off.
  TlsFiles tls;        ///< Without a certificate: plain HTTP, on a loopback address alone.
  ApiServerOptions api_server;
  std::string checkpoint_dir = "/var/lib/kubelet/checkpoints";
  PushRules push;
  UserLimits of_a_user;
};

/// InvalidArgument: it is not reached as these say, over TLS and with a token.
Status CheckApiServer(const ApiServerOptions& options);

class Api {
 public:
  /// Serves from here on; one at a time in a process. `agent` outlives this. InvalidArgument: options that would
  /// serve more than they should.
  static Result<std::unique_ptr<Api>> Start(const ApiOptions& options, cri::Agent& agent);

  virtual ~Api() = default;

  /// Takes no new connection; requests under way have `grace` to end.
  virtual void Shutdown(std::chrono::milliseconds grace) = 0;
};

}  // namespace stasis::kubelet_api
