// What each path answers.
#pragma once

#include <cpprest/http_msg.h>

#include <map>
#include <string>
#include <vector>

#include "cri/agent.h"
#include "kubelet-api/access/access.h"
#include "kubelet-api/checkpoint_folder.h"
#include "kubelet-api/image_pusher.h"

namespace stasis::kubelet_api {

using Answer = Result<web::http::http_response>;

/// A request, taken apart.
struct Call {
  const web::http::http_request& request;
  std::vector<std::string> path;             ///< Its segments, decoded.
  std::map<std::string, std::string> query;  ///< Decoded.
  bool Is(const char* method) const { return request.method() == method; }
};

class Routes {
 public:
  /// All outlive this.
  Routes(cri::Agent& agent, Access& access, const CheckpointFolder& folder, ImagePusher& pusher)
      : agent_(agent), access_(access), folder_(folder), pusher_(pusher) {}

  /// Answers `request`; never throws.
  void Handle(const web::http::http_request& request);

 private:
  web::http::http_response Respond(const web::http::http_request& request);
  Answer Dispatch(const Call& call);
  Answer Health(const Call& call);
  Answer Metrics(const Call& call);
  Answer KubeletCheckpoint(const Call& call);
  Answer OfNamespace(const Call& call);
  Answer List(const Call& call, const std::string* pod_namespace);
  Answer Running(const Call& call, const std::string* pod_namespace);
  Answer Cancel(const Call& call, const std::string& pod_namespace, const std::string& number);
  Answer OfCheckpoint(const Call& call);
  Answer PushImage(const Call& call);
  Answer CheckContainer(const Call& call);
  Status Allow(const Call& call, const Wish& wish);

  cri::Agent& agent_;
  Access& access_;
  const CheckpointFolder& folder_;
  ImagePusher& pusher_;
};

/// The answer with the bytes of `checkpoint` that the request's Range asks for (RFC 9110, one range).
Answer Download(const Call& call, StoredCheckpoint checkpoint);

}  // namespace stasis::kubelet_api
