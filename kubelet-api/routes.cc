#include "kubelet-api/routes.h"

#include <poll.h>

#include <algorithm>
#include <charconv>
#include <thread>

#include "archive/inspect.h"
#include "archive/members.h"
#include "cri/log.h"
#include "kubelet-api/answers.h"
#include "kubelet-api/metrics.h"
#include "kubelet-api/names.h"
#include "kubelet-api/openapi.h"
#include "kubelet-api/transport/exchange.h"

namespace stasis::kubelet_api {
namespace {

namespace http = web::http;
using nlohmann::json;
using std::chrono::system_clock;

constexpr auto kRuntimeTime = std::chrono::seconds(2);
// The kubelet's runtimeRequestTimeout: a client can lengthen it, not shorten it.
constexpr std::int64_t kLeastTimeoutSeconds = 120;
constexpr std::int64_t kMostTimeoutSeconds = 24 * 3600;

std::string Header(const http::http_request& request, const char* name) {
  const auto found = request.headers().find(name);
  return found == request.headers().end() ? "" : found->second;
}

Result<std::int64_t> Number(const std::string& text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    return InvalidArgument("'" + text + "' is no number");
  }
  return number;
}

Status NoSuchPath() { return NotFound("there is nothing at this path; see /openapi/v3"); }

Status WrongMethod(const Call& call) {
  return Unimplemented(call.request.method() + " is not possible here");
}

/// Requests a stop when the client hangs up, or the server ends.
class Attention {
 public:
  explicit Attention(const Exchange& exchange)
      : end_(exchange.stop, [this] { source_.request_stop(); }),
        watcher_([this, fd = exchange.socket](const std::stop_token& done) {
          pollfd client = {fd, POLLRDHUP, 0};
          while (!done.stop_requested()) {
            if (::poll(&client, 1, 50) > 0 && client.revents != 0) {
              source_.request_stop();
              return;
            }
          }
        }) {}
  std::stop_token token() const { return source_.get_token(); }

 private:
  std::stop_source source_;
  std::stop_callback<std::function<void()>> end_;
  std::jthread watcher_;
};

json ToJson(const StoredCheckpoint& one) {
  return {{"name", one.name},      {"namespace", one.of.pod_namespace},
          {"pod", one.of.pod},     {"container", one.of.container},
          {"sizeBytes", one.size}, {"created", one.made}};
}

json ToJson(const cri::RunningCheckpoint& one) {
  json object = {{"number", one.number},
                 {"namespace", one.of.pod_namespace},
                 {"pod", one.of.pod},
                 {"container", one.of.container},
                 {"containerID", one.container_id},
                 {"started", archive::Rfc3339(one.started)},
                 {"doneBytes", one.done_bytes},
                 {"totalBytes", one.total_bytes},
                 {"standsStill", one.stands_still},
                 {"frozenMicroseconds", one.frozen.count()}};
  object["percent"] = one.total_bytes == 0
                          ? 0
                          : std::min<std::uint64_t>(one.done_bytes * 100 / one.total_bytes, 100);
  return object;
}

Result<Call> Parse(const http::http_request& request) {
  Call call{.request = request, .path = {}, .query = {}};
  const web::uri& uri = request.request_uri();
  for (const std::string& segment : web::uri::split_path(uri.path())) {
    call.path.push_back(web::uri::decode(segment));
  }
  for (const auto& [key, value] : web::uri::split_query(uri.query())) {
    call.query[web::uri::decode(key)] = web::uri::decode(value);  // of several, the last
  }
  return call;
}

}  // namespace

void Routes::Handle(const http::http_request& request) {
  http::http_response response;
  try {
    response = Respond(request);
  } catch (const web::uri_exception&) {
    response = ErrorAnswer(InvalidArgument("this is no path"));
  } catch (const std::exception& error) {
    log::Error("request of the REST API", {{"reason", error.what()}});
    response = ErrorAnswer(Internal("the request could not be answered; see the log of stasisd"));
  }
  log::Debug("request", {{"client", request.remote_address()},
                         {"method", request.method()},
                         {"path", request.request_uri().path()},
                         {"code", std::to_string(response.status_code())}});
  request.reply(response).wait();
}

http::http_response Routes::Respond(const http::http_request& request) {
  const Result<Call> call = Parse(request);
  if (!call.ok()) return ErrorAnswer(call.status());
  Answer answer = Dispatch(*call);
  if (answer.ok()) return *answer;
  if (answer.status().code() == StatusCode::kUnimplemented) {
    http::http_response refused = ErrorAnswer(answer.status());
    refused.set_status_code(http::status_codes::MethodNotAllowed);
    return refused;
  }
  if (HttpCode(answer.status().code()) == 403) {
    log::Info("request refused", {{"client", request.remote_address()},
                                  {"path", request.request_uri().path()},
                                  {"reason", ToText(answer.status())}});
  }
  return ErrorAnswer(answer.status());
}

Answer Routes::Dispatch(const Call& call) {
  const std::vector<std::string>& path = call.path;
  if (path.empty()) return NoSuchPath();
  if (path[0] == "healthz" || path[0] == "readyz") return Health(call);
  if (path[0] == "checkpoint") return KubeletCheckpoint(call);
  if (path[0] == "metrics" && path.size() == 1) return Metrics(call);
  if (path.size() == 2 && path[0] == "openapi" && path[1] == "v3") {
    RETURN_IF_ERROR(
        Allow(call, {.verb = "get", .pod_namespace = {}, .name = {}, .path = "/openapi/v3"}));
    http::http_response answer(http::status_codes::OK);
    answer.set_body(std::string(kOpenApi), "application/json");
    return answer;
  }
  if (path[0] != "v1" || path.size() < 2) return NoSuchPath();
  if (path.size() == 2 && path[1] == "checkpoints") return List(call, nullptr);
  if (path.size() == 2 && path[1] == "running") return Running(call, nullptr);
  if (path.size() >= 4 && path[1] == "namespaces" && IsObjectName(path[2]))
    return OfNamespace(call);
  return NoSuchPath();
}

Answer Routes::OfNamespace(const Call& call) {
  const std::vector<std::string>& path = call.path;
  if (path[3] == "checkpoints") {
    if (path.size() == 6 && path[5] == "image") return PushImage(call);
    return path.size() == 4 ? List(call, &path[2]) : OfCheckpoint(call);
  }
  if (path[3] == "running" && path.size() == 4) return Running(call, &path[2]);
  if (path[3] == "running" && path.size() == 5) return Cancel(call, path[2], path[4]);
  if (path[3] == "pods" && path.size() == 8 && path[5] == "containers" && path[7] == "check") {
    return CheckContainer(call);
  }
  return NoSuchPath();
}

Status Routes::Allow(const Call& call, const Wish& wish) {
  // Only the API server knows who may act as whom; the rights of the caller are not those that it asked for.
  const auto lower = [](char letter) {
    return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
  };
  for (const auto& [name, value] : call.request.headers()) {
    std::string key = name;
    std::ranges::transform(key, key.begin(), lower);
    if (!key.starts_with("impersonate-")) continue;
    return PermissionDenied(
        "the agent does not impersonate (" + name +
        "); ask without --as, or through the kubelet's endpoint (--via kubelet)");
  }
  const Credentials credentials = {.certificate = ExchangeOf(call.request).certificate,
                                   .authorization = Header(call.request, "Authorization")};
  ASSIGN_OR_RETURN(const std::string user, access_.Check(credentials, wish));
  ExchangeOf(call.request).authenticated = true;
  if (wish.verb == "create" || wish.verb == "delete") {
    log::Info("request", {{"user", user},
                          {"client", call.request.remote_address()},
                          {"method", call.request.method()},
                          {"path", call.request.request_uri().path()}});
  }
  return OkStatus();
}

Answer Routes::Health(const Call& call) {
  if (call.path.size() != 1) return NoSuchPath();
  if (!call.Is("GET") && !call.Is("HEAD")) return WrongMethod(call);
  if (call.path[0] == "healthz") return TextAnswer(200, "ok");
  const Status ready = agent_.Ready({.deadline = system_clock::now() + kRuntimeTime});
  // Why not is for those who may read the log: anybody may ask here.
  if (!ready.ok()) log::Warn("not ready, ignoring", {{"reason", ToText(ready)}});
  return ready.ok() ? TextAnswer(200, "ok")
                    : TextAnswer(503, "the container runtime does not answer");
}

Answer Routes::Metrics(const Call& call) {
  if (!call.Is("GET")) return WrongMethod(call);
  RETURN_IF_ERROR(
      Allow(call, {.verb = "get", .pod_namespace = {}, .name = {}, .path = "/metrics"}));
  http::http_response answer(http::status_codes::OK);
  answer.set_body(MetricsText(agent_.activity()), "text/plain; version=0.0.4; charset=utf-8");
  return answer;
}

// As the kubelet's handler: the same path, query, codes and texts, so that one client serves both.
Answer Routes::KubeletCheckpoint(const Call& call) {
  if (call.path.size() != 4) return NoSuchPath();
  if (!call.Is("POST")) return WrongMethod(call);
  const cri::PodContainer names = {
      .pod_namespace = call.path[1], .pod = call.path[2], .container = call.path[3]};
  if (!IsObjectName(names.pod_namespace) || !IsObjectName(names.pod) ||
      !IsObjectName(names.container)) {
    return TextAnswer(404, "pod does not exist");
  }
  RETURN_IF_ERROR(Allow(
      call,
      {.verb = "create", .pod_namespace = names.pod_namespace, .name = names.pod, .path = {}}));
  std::int64_t seconds = 0;
  if (const auto asked = call.query.find("timeout"); asked != call.query.end()) {
    const Result<std::int64_t> number = Number(asked->second);
    if (!number.ok() || *number < 0)
      return TextAnswer(404, "cannot parse value of timeout parameter");
    seconds = *number;
  }
  const Attention attention(ExchangeOf(call.request));
  const cri::CallLimits limits = {
      .deadline = system_clock::now() + std::chrono::seconds(std::clamp(
                                            seconds, kLeastTimeoutSeconds, kMostTimeoutSeconds)),
      .stop = attention.token()};
  const Result<std::string> id = agent_.Find(names, limits);
  if (id.status().code() == StatusCode::kNotFound) return TextAnswer(404, Message(id.status()));
  const auto failed = [&](const Status& status) {
    return TextAnswer(500, "checkpointing of " + names.pod_namespace + "/" + names.pod + "/" +
                               names.container + " failed (" + Message(status) + ")");
  };
  if (!id.ok()) return failed(id.status());
  const Result<std::string> path = folder_.NewPath(names);
  if (!path.ok()) return failed(path.status());
  const auto done = agent_.Checkpoint(*id, *path, limits);
  if (!done.ok()) return failed(done.status());
  return JsonAnswer(200, {{"items", {*path}}});
}

Answer Routes::List(const Call& call, const std::string* pod_namespace) {
  if (!call.Is("GET")) return WrongMethod(call);
  RETURN_IF_ERROR(Allow(call, {.verb = "list",
                               .pod_namespace = pod_namespace ? *pod_namespace : "",
                               .name = {},
                               .path = {}}));
  ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> all, folder_.List(pod_namespace));
  json items = json::array();
  for (const StoredCheckpoint& one : all) items.push_back(ToJson(one));
  return JsonAnswer(200, {{"items", items}});
}

Answer Routes::Running(const Call& call, const std::string* pod_namespace) {
  if (!call.Is("GET")) return WrongMethod(call);
  RETURN_IF_ERROR(Allow(call, {.verb = "list",
                               .pod_namespace = pod_namespace ? *pod_namespace : "",
                               .name = {},
                               .path = {}}));
  json items = json::array();
  for (const cri::RunningCheckpoint& one : agent_.activity().Running()) {
    if (pod_namespace == nullptr || one.of.pod_namespace == *pod_namespace) {
      items.push_back(ToJson(one));
    }
  }
  return JsonAnswer(200, {{"items", items}});
}

Answer Routes::Cancel(const Call& call, const std::string& pod_namespace,
                      const std::string& number) {
  if (!call.Is("DELETE")) return WrongMethod(call);
  RETURN_IF_ERROR(
      Allow(call, {.verb = "delete", .pod_namespace = pod_namespace, .name = {}, .path = {}}));
  const Result<std::int64_t> wanted = Number(number);
  for (const cri::RunningCheckpoint& one : agent_.activity().Running()) {
    if (!wanted.ok() || one.number != static_cast<std::uint64_t>(*wanted) ||
        one.of.pod_namespace != pod_namespace) {
      continue;
    }
    agent_.activity().Cancel(one.number);
    return JsonAnswer(202, ToJson(one));
  }
  return NotFound("no checkpoint " + number + " is under way in namespace " + pod_namespace);
}

Answer Routes::OfCheckpoint(const Call& call) {
  const std::string& pod_namespace = call.path[2];
  const std::string& name = call.path[4];
  const std::string what = call.path.size() == 6 ? call.path[5] : "";
  if (call.path.size() > 6 || (!what.empty() && what != "archive" && what != "verify")) {
    return NoSuchPath();
  }
  const bool deletes = what.empty() && call.Is("DELETE");
  if (!deletes && !call.Is("GET") && !call.Is("HEAD")) return WrongMethod(call);
  // Before anything is looked at, so that nobody learns what is in another's namespace.
  RETURN_IF_ERROR(Allow(call, {.verb = deletes ? "delete" : "get",
                               .pod_namespace = pod_namespace,
                               .name = name,
                               .path = {}}));
  ASSIGN_OR_RETURN(StoredCheckpoint found, folder_.Find(pod_namespace, name));
  if (what == "archive") return Download(call, std::move(found));
  if (deletes) {
    RETURN_IF_ERROR(folder_.Delete(found));
    return JsonAnswer(200, ToJson(found));
  }
  ASSIGN_OR_RETURN(const auto archive, folder_.Open(found));
  if (what.empty()) {
    ASSIGN_OR_RETURN(const archive::Inspection inspection, archive::Inspect(*archive));
    return JsonAnswer(200, archive::ToJson(inspection));
  }
  ASSIGN_OR_RETURN(const archive::Verification verified, archive::Verify(*archive));
  return JsonAnswer(200, {{"name", name},
                          {"ok", verified.problems.empty()},
                          {"hashes", verified.has_manifest},
                          {"members", verified.members},
                          {"bytes", verified.bytes},
                          {"problems", verified.problems},
                          {"notes", verified.notes}});
}

Answer Routes::PushImage(const Call& call) {
  if (!call.Is("POST")) return WrongMethod(call);
  const std::string& pod_namespace = call.path[2];
  const std::string& name = call.path[4];
  // It makes something, of what could be downloaded.
  for (const char* const verb : {"create", "get"}) {
    RETURN_IF_ERROR(
        Allow(call, {.verb = verb, .pod_namespace = pod_namespace, .name = name, .path = {}}));
  }
  const auto reference = call.query.find("reference");
  if (reference == call.query.end()) {
    return InvalidArgument("name the image: ?reference=REGISTRY/NAME:TAG");
  }
  ASSIGN_OR_RETURN(const StoredCheckpoint found, folder_.Find(pod_namespace, name));
  ASSIGN_OR_RETURN(const auto archive, folder_.Open(found));
  ASSIGN_OR_RETURN(const PushedImage image,
                   pusher_.Push(*archive, pod_namespace, reference->second));
  return JsonAnswer(200, {{"image", image.name},
                          {"digest", image.digest},
                          {"layerBytes", image.layer_bytes},
                          {"uploadedBytes", image.uploaded_bytes}});
}

Answer Routes::CheckContainer(const Call& call) {
  if (!call.Is("GET")) return WrongMethod(call);
  const cri::PodContainer names = {
      .pod_namespace = call.path[2], .pod = call.path[4], .container = call.path[6]};
  if (!IsObjectName(names.pod) || !IsObjectName(names.container)) return NoSuchPath();
  // Who may not make a checkpoint need not know what is in its way.
  RETURN_IF_ERROR(Allow(
      call,
      {.verb = "create", .pod_namespace = names.pod_namespace, .name = names.pod, .path = {}}));
  const cri::CallLimits limits = {.deadline = system_clock::now() + kRuntimeTime * 5};
  ASSIGN_OR_RETURN(const std::string id, agent_.Find(names, limits));
  ASSIGN_OR_RETURN(const engine::DumpCheck found, agent_.Check(id, limits));
  return JsonAnswer(200, {{"containerID", id},
                          {"canBeCheckpointed", found.obstacles.empty()},
                          {"processes", found.processes},
                          {"threads", found.threads},
                          {"openFiles", found.files},
                          {"obstacles", found.obstacles},
                          {"notes", found.notes}});
}

}  // namespace stasis::kubelet_api
