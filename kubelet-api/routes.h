// What each path answers.
#pragma once

#include <cpprest/http_msg.h>

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cri/agent.h"
#include "kubelet-api/access/access.h"
#include "kubelet-api/checkpoint_folder.h"
#include "kubelet-api/image_pusher.h"
#include "kubelet-api/turns.h"
#include "kubelet-api/user_limits.h"

namespace stasis::kubelet_api {

using Answer = Result<web::http::http_response>;

/// A request, taken apart.
struct Call {
  const web::http::http_request& request;
  std::vector<std::string> path;             ///< Its segments, decoded.
  std::map<std::string, std::string> query;  ///< Decoded.
  Identity identity;                         ///< Whose it is.
  bool Is(const char* method) const { return request.method() == method; }
  bool Reads() const { return Is("GET") || Is("HEAD"); }
};

class Routes {
 public:
  /// All outlive this.
  Routes(cri::Agent& agent, Access& access, const CheckpointFolder& folder, ImagePusher& pusher,
         const UserLimits& limits);

  /// Answers `request`; never throws.
  void Handle(const web::http::http_request& request);

 private:
  web::http::http_response Respond(const web::http::http_request& request);
  web::http::http_response Health(const Call& call);
  Answer RespondToUser(Call& call);
  Answer Dispatch(const Call& call);
  Answer Metrics(const Call& call);
  Answer Document(const Call& call);
  Answer KubeletCheckpoint(const Call& call);
  Answer Checkpoint(const Call& call, const cri::PodContainer& names);
  Answer OfNamespace(const Call& call);
  Answer List(const Call& call, const std::string* pod_namespace);
  Answer Running(const Call& call, const std::string* pod_namespace);
  Answer Cancel(const Call& call, const std::string& pod_namespace, const std::string& number);
  Answer OfCheckpoint(const Call& call);
  Answer PushImage(const Call& call);
  Answer Verify(const Call& call, const StoredCheckpoint& checkpoint);
  Answer CheckContainer(const Call& call);
  Status Allow(const Call& call, const Wish& wish);
  Status Ready();

  cri::Agent& agent_;
  Access& access_;
  const CheckpointFolder& folder_;
  ImagePusher& pusher_;
  const UserLimits limits_;
  Turns requests_;     // by user
  Turns checkpoints_;  // by user

  std::mutex ready_mutex_;
  Status ready_;  // as it was asked last
  std::chrono::steady_clock::time_point ready_until_;
};

/// The answer with the bytes of `checkpoint` that the request's Range asks for (RFC 9110, one range).
Answer Download(const Call& call, StoredCheckpoint checkpoint);

}  // namespace stasis::kubelet_api
