// Rule    A patch of nodes/status may change labels, too, but nothing in the spec: one right for both, which can
//         neither taint nor cordon a node (kubernetes: pkg/registry/core/node/strategy.go, PrepareForUpdate).
// Rule    Conditions are merged by their type in a strategic merge patch; the kubelet leaves those alone that are
//         not its own, as it does the node problem detector's.
#include "kubelet-api/node/node_reporter.h"

#include <utility>

#include "archive/members.h"
#include "cri/log.h"
#include "kubelet-api/client_threads.h"
#include "kubelet-api/events/event_queue.h"
#include "kubelet-api/stop_after.h"

namespace stasis::kubelet_api {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;
using std::chrono::system_clock;

constexpr const char* kCondition = "StasisReady";
constexpr const char* kVersionLabel = "stasis.dev/version";
constexpr const char* kCpuLabel = "stasis.dev/cpu-level";
constexpr const char* kScanLabel = "stasis.dev/pagemap-scan";
constexpr const char* kWatchLabel = "stasis.dev/userfaultfd-wp-async";

// Every write is seen by all who watch nodes: as rarely as the node problem detector's.
constexpr auto kBetweenSignsOfLife = std::chrono::minutes(5);
constexpr auto kRuntimeTime = std::chrono::seconds(2);
constexpr auto kTimeAtTheEnd = std::chrono::seconds(5);
constexpr std::size_t kMostMessageBytes = 512;

std::string Text(const NodeReport& report) {
  std::string text = "stasisd " + report.agent_version + " on Linux " + report.host.kernel_release;
  if (!report.runtime.ok()) return text + ": " + Message(report.runtime);
  return text + (report.host.pagemap_scan && report.host.userfaultfd_wp_async
                     ? "; memory is saved while its container runs"
                     : "; memory is saved while its container stands still");
}

const char* YesOrNo(bool yes) { return yes ? "true" : "false"; }

}  // namespace

json PatchOf(const NodeReport& report, system_clock::time_point since,
             system_clock::time_point now) {
  const bool ready = report.runtime.ok();
  return {{"metadata",
           {{"labels",
             {{kVersionLabel, report.agent_version},
              {kCpuLabel, report.host.cpu_level},
              {kScanLabel, YesOrNo(report.host.pagemap_scan)},
              {kWatchLabel, YesOrNo(report.host.userfaultfd_wp_async)}}}}},
          {"status",
           {{"conditions",
             {{{"type", kCondition},
               {"status", ready ? "True" : "False"},
               {"reason", ready ? "RuntimeAnswers" : "RuntimeDoesNotAnswer"},
               {"message", Printable(Text(report), kMostMessageBytes)},
               {"lastTransitionTime", archive::Rfc3339(since)},
               {"lastHeartbeatTime", archive::Rfc3339(now)}}}}}}};
}

json PatchThatTakesBack() {
  return {{"metadata",
           {{"labels",
             {{kVersionLabel, nullptr},
              {kCpuLabel, nullptr},
              {kScanLabel, nullptr},
              {kWatchLabel, nullptr}}}}},
          {"status", {{"conditions", {{{"type", kCondition}, {"$patch", "delete"}}}}}}};
}

NodeReporter::NodeReporter(const ApiServerOptions& options, std::string node,
                           std::string agent_version, cri::Agent& agent,
                           std::chrono::milliseconds between_looks)
    : api_server_(options), node_(std::move(node)), agent_(agent), between_looks_(between_looks) {
  report_.agent_version = std::move(agent_version);
  report_.host = engine::ReadHostFeatures();
  StartClientThreads();
  thread_ = std::jthread([this](const std::stop_token& stop) { Run(stop); });
}

NodeReporter::~NodeReporter() {
  thread_.request_stop();
  at_once_.request_stop();
  thread_.join();
}

void NodeReporter::Run(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  while (!stop.stop_requested()) {
    Look();
    never.wait_for(lock, stop, between_looks_, [] { return false; });
  }
  if (!may_be_there_) return;
  // Who is watched by a node's labels must not be sent to one where nobody would restore it.
  const StopAfter late(kTimeAtTheEnd);
  const Status taken = Patch(PatchThatTakesBack(), late.token());
  if (!taken.ok()) {
    log::Warn("the node's labels stay, ignoring", {{"node", node_}, {"reason", ToText(taken)}});
  }
}

void NodeReporter::Look() {
  report_.runtime =
      agent_.Ready({.deadline = system_clock::now() + kRuntimeTime, .stop = at_once_.get_token()});
  if (at_once_.stop_requested()) return;
  const auto now = system_clock::now();
  const bool is_news = !told_ || *told_ != report_.runtime.code();
  if (!is_news && steady_clock::now() - told_at_ < kBetweenSignsOfLife) return;
  if (is_news) since_ = now;
  const Status told = Patch(PatchOf(report_, since_, now), at_once_.get_token());
  // What was not answered, or was cut off by the end, may have come through.
  may_be_there_ = may_be_there_ || told.ok() || told.code() == StatusCode::kUnavailable;
  if (told.ok()) {
    told_ = report_.runtime.code();
    told_at_ = steady_clock::now();
  } else if (!has_failed_ && !at_once_.stop_requested()) {
    log::Warn("the node's labels and condition are not written yet, ignoring",
              {{"node", node_}, {"reason", ToText(told)}});
  }
  has_failed_ = !told.ok();
}

Status NodeReporter::Patch(const json& patch, const std::stop_token& stop) {
  return api_server_
      .Change("PATCH", "/api/v1/nodes/" + node_ + "/status",
              "application/strategic-merge-patch+json", patch, stop)
      .status();
}

}  // namespace stasis::kubelet_api
