#include "kubelet-api/routes.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <limits>

#include "archive/inspect.h"
#include "archive/members.h"
#include "cri/log.h"
#include "kubelet-api/answers.h"
#include "kubelet-api/attention.h"
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
constexpr auto kReadyKept = std::chrono::seconds(1);
// The kubelet's runtimeRequestTimeout: a client can lengthen it, not shorten it.
constexpr std::int64_t kLeastTimeoutSeconds = 120;
constexpr std::int64_t kMostTimeoutSeconds = std::int64_t{24} * 3600;

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

http::http_response WrongMethod(const Call& call, const char* allowed) {
  return WrongMethodAnswer(call.request.method(), allowed);
}

Status TooMany(const std::string& message) { return SyscallError(EAGAIN, message); }

// Only the API server knows who may act as whom; the rights of the caller are not those that it asked for.
Status RefuseImpersonation(const http::http_request& request) {
  for (const auto& [name, value] : request.headers()) {
    if (!absl::StartsWithIgnoreCase(name, "impersonate-")) continue;
    return PermissionDenied(
        "the agent does not impersonate (" + name +
        "); ask without --as, or through the kubelet's endpoint (--via kubelet)");
  }
  return OkStatus();
}

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

json ToJson(const cri::ContainerCheckpoint& made) {
  json object = {{"sizeBytes", made.archive_bytes},
                 {"frozenMicroseconds", made.report.stops.total.count()},
                 {"totalMicroseconds", made.total.count()}};
  if (made.compression) {
    using Seconds = std::chrono::duration<double>;
    object["compression"] = {{"plainBytes", made.compression->plain_bytes},
                             {"ratio", made.compression->ratio()},
                             {"cpuSeconds", Seconds(made.compression->cpu).count()}};
  }
  return object;
}

Result<archive::ChosenCompression> ChosenBy(const Call& call) {
  const auto asked = call.query.find("compress");
  if (asked == call.query.end()) return archive::ChosenCompression();
  ASSIGN_OR_RETURN(const auto compression, archive::ParseUsersCompression(asked->second));
  return archive::ChosenCompression(compression);
}

Call Parse(const http::http_request& request) {
  Call call{.request = request, .path = {}, .query = {}, .identity = {}};
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

Routes::Routes(cri::Agent& agent, Access& access, const CheckpointFolder& folder,
               ImagePusher& pusher, const UserLimits& limits)
    : agent_(agent),
      access_(access),
      folder_(folder),
      pusher_(pusher),
      limits_(limits),
      requests_(limits.requests, std::numeric_limits<int>::max()),
      checkpoints_(limits.checkpoints, std::numeric_limits<int>::max()) {}

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
  Call call = Parse(request);
  const bool health =
      call.path.size() == 1 && (call.path[0] == "healthz" || call.path[0] == "readyz");
  if (health && call.Reads()) return Health(call);
  Answer answer = RespondToUser(call);
  if (answer.ok()) return *answer;
  if (HttpCode(answer.status()) == 403) {
    log::Info("request refused", {{"client", request.remote_address()},
                                  {"path", request.request_uri().path()},
                                  {"reason", ToText(answer.status())}});
  }
  return ErrorAnswer(answer.status());
}

// Who it is comes before anything else: what is there and what is not is no stranger's business.
Answer Routes::RespondToUser(Call& call) {
  Exchange& exchange = ExchangeOf(call.request);
  ASSIGN_OR_RETURN(call.identity,
                   access_.Authenticate({.certificate = exchange.certificate,
                                         .authorization = Header(call.request, "Authorization"),
                                         .network = exchange.network},
                                        exchange.stop));
  exchange.authenticated = true;
  RETURN_IF_ERROR(RefuseImpersonation(call.request));
  // A browser shows a client certificate for whatever page makes it ask, and says so here.
  if (!Header(call.request, "Origin").empty()) {
    return PermissionDenied("requests of web pages (Origin) are not answered");
  }
  const auto turn = requests_.Take(call.identity.user);
  if (!turn) {
    return TooMany("user " + call.identity.user + " has " + std::to_string(limits_.requests) +
                   " requests under way, as many as one may have");
  }
  return Dispatch(call);
}

Answer Routes::Dispatch(const Call& call) {
  const std::vector<std::string>& path = call.path;
  if (path.empty()) return NoSuchPath();
  if (path.size() == 1 && (path[0] == "healthz" || path[0] == "readyz")) {
    return WrongMethod(call, "GET, HEAD");
  }
  if (path[0] == "checkpoint" && path.size() == 4) return KubeletCheckpoint(call);
  if (path[0] == "metrics" && path.size() == 1) return Metrics(call);
  if (path.size() == 2 && path[0] == "openapi" && path[1] == "v3") return Document(call);
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
  RETURN_IF_ERROR(access_.Authorize(call.identity, wish, ExchangeOf(call.request).stop));
  if (wish.verb == "create" || wish.verb == "delete") {
    log::Info("request", {{"user", call.identity.user},
                          {"client", call.request.remote_address()},
                          {"method", call.request.method()},
                          {"path", call.request.request_uri().path()}});
  }
  return OkStatus();
}

http::http_response Routes::Health(const Call& call) {
  if (call.path[0] == "healthz") return TextAnswer(200, "ok");
  return Ready().ok() ? TextAnswer(200, "ok")
                      : TextAnswer(503, "the container runtime does not answer");
}

// Anybody may ask here, so the runtime is asked, and the log told why not, once in a while.
Status Routes::Ready() {
  const std::lock_guard lock(ready_mutex_);
  if (std::chrono::steady_clock::now() < ready_until_) return ready_;
  ready_ = agent_.Ready({.deadline = system_clock::now() + kRuntimeTime});
  ready_until_ = std::chrono::steady_clock::now() + kReadyKept;
  if (!ready_.ok()) log::Warn("not ready, ignoring", {{"reason", ToText(ready_)}});
  return ready_;
}

Answer Routes::Metrics(const Call& call) {
  if (!call.Reads()) return WrongMethod(call, "GET, HEAD");
  RETURN_IF_ERROR(
      Allow(call, {.verb = "get", .pod_namespace = {}, .name = {}, .path = "/metrics"}));
  http::http_response answer(http::status_codes::OK);
  answer.set_body(MetricsText(agent_.activity()), "text/plain; version=0.0.4; charset=utf-8");
  return answer;
}

Answer Routes::Document(const Call& call) {
  if (!call.Reads()) return WrongMethod(call, "GET, HEAD");
  RETURN_IF_ERROR(
      Allow(call, {.verb = "get", .pod_namespace = {}, .name = {}, .path = "/openapi/v3"}));
  http::http_response answer(http::status_codes::OK);
  answer.set_body(std::string(kOpenApi), "application/json");
  return answer;
}

// As the kubelet's handler: the same path, query, codes and texts, so that one client serves both.
Answer Routes::KubeletCheckpoint(const Call& call) {
  if (!call.Is("POST")) return WrongMethod(call, "POST");
  const cri::PodContainer names = {
      .pod_namespace = call.path[1], .pod = call.path[2], .container = call.path[3]};
  if (!IsObjectName(names.pod_namespace) || !IsObjectName(names.pod) ||
      !IsObjectName(names.container)) {
    return TextAnswer(404, "pod does not exist");
  }
  RETURN_IF_ERROR(Allow(
      call,
      {.verb = "create", .pod_namespace = names.pod_namespace, .name = names.pod, .path = {}}));
  const auto turn = checkpoints_.Take(call.identity.user);
  if (!turn) {
    return TooMany("user " + call.identity.user + " has " + std::to_string(limits_.checkpoints) +
                   " checkpoints under way, as many as --api-user-checkpoints allows");
  }
  return Checkpoint(call, names);
}

Answer Routes::Checkpoint(const Call& call, const cri::PodContainer& names) {
  std::int64_t seconds = 0;
  if (const auto asked = call.query.find("timeout"); asked != call.query.end()) {
    const Result<std::int64_t> number = Number(asked->second);
    if (!number.ok() || *number < 0)
      return TextAnswer(404, "cannot parse value of timeout parameter");
    seconds = *number;
  }
  ASSIGN_OR_RETURN(const archive::ChosenCompression compression, ChosenBy(call));
  const Attention attention(ExchangeOf(call.request));
  const cri::CallLimits limits = {
      .deadline = system_clock::now() + std::chrono::seconds(std::clamp(
                                            seconds, kLeastTimeoutSeconds, kMostTimeoutSeconds)),
      .stop = attention.token()};
  const Result<std::string> id = agent_.Find(names, limits);
  if (id.status().code() == StatusCode::kNotFound) return TextAnswer(404, Message(id.status()));
  const auto failed = [&](const Status& status) -> Answer {
    // The kubelet knows no other code; these two tell a client what to do.
    const int code = HttpCode(status);
    if (code == 429 || code == 507) return status;
    return TextAnswer(500, "checkpointing of " + names.pod_namespace + "/" + names.pod + "/" +
                               names.container + " failed (" + Message(status) + ")");
  };
  if (!id.ok()) return failed(id.status());
  const Result<std::string> path = folder_.NewPath(names);
  if (!path.ok()) return failed(path.status());
  const auto done = agent_.Checkpoint(*id, *path, limits, compression);
  if (!done.ok()) return failed(done.status());
  return JsonAnswer(200, {{"items", {*path}}, {"report", ToJson(*done)}});
}

Answer Routes::List(const Call& call, const std::string* pod_namespace) {
  if (!call.Reads()) return WrongMethod(call, "GET, HEAD");
  RETURN_IF_ERROR(Allow(call, {.verb = "list",
                               .pod_namespace = pod_namespace ? *pod_namespace : "",
                               .name = {},
                               .path = {}}));
  const Attention attention(ExchangeOf(call.request));
  ASSIGN_OR_RETURN(const std::vector<StoredCheckpoint> all,
                   folder_.List(pod_namespace, attention.token()));
  json items = json::array();
  for (const StoredCheckpoint& one : all) items.push_back(ToJson(one));
  return JsonAnswer(200, {{"items", items}});
}

Answer Routes::Running(const Call& call, const std::string* pod_namespace) {
  if (!call.Reads()) return WrongMethod(call, "GET, HEAD");
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
  if (!call.Is("DELETE")) return WrongMethod(call, "DELETE");
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
  if (!deletes && !call.Reads()) {
    return WrongMethod(call, what.empty() ? "GET, HEAD, DELETE" : "GET, HEAD");
  }
  if (!CheckpointFolder::IsName(name)) {
    return NotFound("checkpoint " + name + " does not exist in namespace " + pod_namespace);
  }
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
  if (what == "verify") return Verify(call, found);
  ASSIGN_OR_RETURN(const auto archive, folder_.Open(found));
  ASSIGN_OR_RETURN(const archive::Inspection inspection, archive::Inspect(*archive));
  return JsonAnswer(200, archive::ToJson(inspection));
}

Answer Routes::Verify(const Call& call, const StoredCheckpoint& checkpoint) {
  ASSIGN_OR_RETURN(const auto archive, folder_.Open(checkpoint));
  const Attention attention(ExchangeOf(call.request));
  ASSIGN_OR_RETURN(const archive::Verification verified,
                   archive::Verify(*archive, {}, attention.token()));
  return JsonAnswer(200, {{"name", checkpoint.name},
                          {"ok", verified.problems.empty()},
                          {"hashes", verified.has_manifest},
                          {"members", verified.members},
                          {"bytes", verified.bytes},
                          {"problems", verified.problems},
                          {"notes", verified.notes}});
}

Answer Routes::PushImage(const Call& call) {
  if (!call.Is("POST")) return WrongMethod(call, "POST");
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
  const Attention attention(ExchangeOf(call.request));
  ASSIGN_OR_RETURN(const PushedImage image,
                   pusher_.Push(*archive, pod_namespace, reference->second, attention.token()));
  return JsonAnswer(200, {{"image", image.name},
                          {"digest", image.digest},
                          {"layerBytes", image.layer_bytes},
                          {"uploadedBytes", image.uploaded_bytes}});
}

Answer Routes::CheckContainer(const Call& call) {
  if (!call.Reads()) return WrongMethod(call, "GET, HEAD");
  const cri::PodContainer names = {
      .pod_namespace = call.path[2], .pod = call.path[4], .container = call.path[6]};
  if (!IsObjectName(names.pod) || !IsObjectName(names.container)) return NoSuchPath();
  // Who may not make a checkpoint need not know what is in its way.
  RETURN_IF_ERROR(Allow(
      call,
      {.verb = "create", .pod_namespace = names.pod_namespace, .name = names.pod, .path = {}}));
  const Attention attention(ExchangeOf(call.request));
  const cri::CallLimits limits = {.deadline = system_clock::now() + kRuntimeTime * 5,
                                  .stop = attention.token()};
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
