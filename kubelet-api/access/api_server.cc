// Source  authentication.k8s.io/v1 TokenReview, authorization.k8s.io/v1 SubjectAccessReview
#include "kubelet-api/access/api_server.h"

#include <absl/strings/cord.h>
#include <absl/strings/numbers.h>
#include <cpprest/http_client.h>
#include <fcntl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <boost/asio/ssl.hpp>
#include <chrono>

#include "archive/json_fields.h"
#include "cri/log.h"
#include "engine/base/io.h"
#include "kubelet-api/stop_after.h"

namespace stasis::kubelet_api {
namespace {

namespace http = web::http;
using archive::Field;
using archive::TextField;
using nlohmann::json;

constexpr const char* kRetryAfter = "stasis/retry-after";

http::client::http_client_config Config(const std::string& ca_file) {
  http::client::http_client_config config;
  config.set_max_redirects(0);  // the token is for this server alone
  config.set_ssl_context_callback([ca_file](boost::asio::ssl::context& context) {
    // Not the machine's own authorities, which cpprestsdk begins with.
    ::SSL_CTX_set_cert_store(context.native_handle(), ::X509_STORE_new());
    context.load_verify_file(ca_file);
    ::SSL_CTX_set_min_proto_version(context.native_handle(), TLS1_2_VERSION);
  });
  return config;
}

// Source  authentication.k8s.io/v1: a server that knows of audiences names those of ours that the token is for;
// another's answer is about tokens for itself.
bool IsFor(const std::vector<std::string>& audiences, const json& status) {
  if (audiences.empty()) return true;
  for (const json& one : archive::ArrayField(status, "audiences")) {
    if (one.is_string() && std::ranges::count(audiences, one.get<std::string>()) > 0) return true;
  }
  return false;
}

}  // namespace

std::chrono::seconds RetryAfterOf(const Status& status) {
  constexpr int kMost = 60;
  int seconds = 0;
  const auto payload = status.GetPayload(kRetryAfter);
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &seconds)) return {};
  return std::chrono::seconds(std::clamp(seconds, 0, kMost));
}

Result<ApiServer::Reply> ApiServer::Send(const std::string& method, const std::string& path,
                                         const std::string& media_type, const json& object,
                                         const std::stop_token& stop) const {
  ASSIGN_OR_RETURN(std::string token, ReadFileAt(AT_FDCWD, options_.token_file));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
  try {
    http::client::http_client client(options_.url, Config(options_.ca_file));
    http::http_request request(method);
    request.set_request_uri(path);
    request.headers().add("Authorization", "Bearer " + token);
    request.set_body(archive::Dump(object), media_type);
    pplx::cancellation_token_source ended;
    // cpprestsdk's own time begins anew with each byte that comes.
    const StopAfter late(options_.answer_time, stop);
    const std::stop_callback end(late.token(), [&ended] { ended.cancel(); });
    const http::http_response response = client.request(request, ended.get_token()).get();
    const std::string text = response.extract_utf8string(/*ignore_content_type=*/true).get();
    Reply reply = {.code = response.status_code(), .object = {}, .message = {}, .retry_after = {}};
    if (const auto later = response.headers().find("Retry-After");
        later != response.headers().end()) {
      reply.retry_after =
          later->second;  // seconds, RFC 9110 10.2.3; a date is not the API server's way
    }
    Result<json> answer = archive::ParseObject(text, path);
    if (reply.code / 100 == 2) {
      RETURN_IF_ERROR(answer.status());
      reply.object = *std::move(answer);
    } else if (answer.ok()) {
      reply.message = TextField(*answer, "message");
    }
    return reply;
  } catch (const std::exception& error) {  // cpprestsdk: nobody there, a strange certificate
    return Unavailable("ask the API server at " + options_.url + ": " + error.what());
  }
}

Result<json> ApiServer::Create(const std::string& path, const json& object,
                               const std::stop_token& stop) const {
  Result<Reply> reply = Send("POST", path, "application/json", object, stop);
  if (reply.ok() && reply->code / 100 == 2) return std::move(reply->object);
  log::Warn(
      "the API server is not to be asked, ignoring",
      {{"server", options_.url},
       {"reason", reply.ok() ? "it refuses to answer: " + std::to_string(reply->code) + " " +
                                   reply->message +
                                   "; stasisd's own account needs the role system:auth-delegator"
                             : ToText(reply.status())}});
  return Unavailable(
      "stasisd cannot ask the cluster's API server, so it lets nobody in; its log on the node says "
      "why");
}

Result<json> ApiServer::Change(const std::string& method, const std::string& path,
                               const std::string& media_type, const json& object,
                               const std::stop_token& stop) const {
  Result<Reply> reply = Send(method, path, media_type, object, stop);
  if (!reply.ok()) return Unavailable(Message(reply.status()));  // the token file may come, too
  if (reply->code / 100 == 2) return std::move(reply->object);
  const std::string text =
      "the API server answers " + std::to_string(reply->code) + ": " + reply->message;
  switch (reply->code) {
    case 400:
    case 422:
      return InvalidArgument(text);
    case 403:
      return PermissionDenied(text + "; see the rights of stasisd's account in docs/security.md");
    case 404:
      return NotFound(text);
    case 409:
      return AlreadyExists(text);
    default: {
      Status later = Unavailable(text);
      later.SetPayload(kRetryAfter, absl::Cord(reply->retry_after));
      return later;
    }
  }
}

Result<std::optional<Identity>> ApiServer::WhoHas(const std::string& token,
                                                  const std::stop_token& stop) const {
  json spec = {{"token", token}};
  if (!options_.audiences.empty()) spec["audiences"] = options_.audiences;
  ASSIGN_OR_RETURN(
      const json answer,
      Create("/apis/authentication.k8s.io/v1/tokenreviews",
             {{"apiVersion", "authentication.k8s.io/v1"}, {"kind", "TokenReview"}, {"spec", spec}},
             stop));
  const json& status = Field(answer, "status");
  if (Field(status, "authenticated") != true || !IsFor(options_.audiences, status)) {
    return std::optional<Identity>();
  }
  const json& user = Field(status, "user");
  Identity identity = {
      .user = TextField(user, "username"), .uid = TextField(user, "uid"), .groups = {}};
  for (const json& group : archive::ArrayField(user, "groups")) {
    if (group.is_string()) identity.groups.push_back(group);
  }
  if (const json& extra = Field(user, "extra"); extra.is_object()) identity.extra = extra;
  if (identity.user.empty()) return std::optional<Identity>();
  return std::optional(identity);
}

Result<bool> ApiServer::Allows(const Identity& identity, const Wish& wish,
                               const std::stop_token& stop) const {
  json spec = {{"user", identity.user},
               {"uid", identity.uid},
               {"groups", identity.groups},
               {"extra", identity.extra}};
  if (wish.path.empty()) {
    spec["resourceAttributes"] = {{"group", "stasis.dev"},
                                  {"resource", "checkpoints"},
                                  {"verb", wish.verb},
                                  {"namespace", wish.pod_namespace},
                                  {"name", wish.name}};
  } else {
    spec["nonResourceAttributes"] = {{"path", wish.path}, {"verb", wish.verb}};
  }
  ASSIGN_OR_RETURN(const json answer, Create("/apis/authorization.k8s.io/v1/subjectaccessreviews",
                                             {{"apiVersion", "authorization.k8s.io/v1"},
                                              {"kind", "SubjectAccessReview"},
                                              {"spec", spec}},
                                             stop));
  const json& status = Field(answer, "status");
  return Field(status, "allowed") == true && Field(status, "denied") != true;
}

}  // namespace stasis::kubelet_api
