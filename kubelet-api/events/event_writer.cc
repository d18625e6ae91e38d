// Source  core/v1 Event; "kubectl describe pod" finds those whose involvedObject has the pod's name, namespace and
//         uid, and shows count and first and last time as "3s (x4 over 2m)"
// Rule    An Event lives for an hour after its last change (kube-apiserver --event-ttl): a patch may find none.
#include "kubelet-api/events/event_writer.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>

#include "archive/members.h"
#include "cri/log.h"
#include "kubelet-api/client_threads.h"
#include "kubelet-api/names.h"

namespace stasis::kubelet_api {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

constexpr auto kTimeAtTheEnd = std::chrono::seconds(2);
constexpr const char* kComponent = "stasisd";
constexpr const char* kJson = "application/json";
constexpr const char* kMergePatch = "application/merge-patch+json";

std::string PathOf(const cri::PodEvent& event) {
  return "/api/v1/namespaces/" + event.of.names.pod_namespace + "/events";
}

// Never given twice, and a name: the pod's, which may be as long as a name can be, and the time.
std::string NewName(const cri::PodEvent& event, std::uint64_t number) {
  constexpr std::size_t kMostOfPod = 200;
  std::string pod = event.of.names.pod.substr(0, kMostOfPod);
  while (pod.ends_with('.') || pod.ends_with('-')) pod.pop_back();
  const auto time = std::chrono::system_clock::now().time_since_epoch();
  return absl::StrCat(pod, ".", absl::Hex(time.count()), ".", absl::Hex(number));
}

json ChangesOf(const EventSeries& series) {
  return {{"count", series.count},
          {"lastTimestamp", archive::Rfc3339(series.latest.time)},
          {"message", series.latest.message}};
}

json ObjectOf(const EventSeries& series, const std::string& name, const std::string& node) {
  const cri::PodEvent& event = series.latest;
  json object = ChangesOf(series);
  object.update(json{{"apiVersion", "v1"},
                     {"kind", "Event"},
                     {"metadata", {{"name", name}, {"namespace", event.of.names.pod_namespace}}},
                     {"involvedObject",
                      {{"apiVersion", "v1"},
                       {"kind", "Pod"},
                       {"namespace", event.of.names.pod_namespace},
                       {"name", event.of.names.pod},
                       {"uid", event.of.pod_uid}}},
                     {"type", event.is_warning ? "Warning" : "Normal"},
                     {"reason", event.reason},
                     {"source", {{"component", kComponent}, {"host", node}}},
                     {"reportingComponent", kComponent},
                     {"reportingInstance", node},
                     {"firstTimestamp", archive::Rfc3339(series.first)}});
  return object;
}

}  // namespace

EventWriter::EventWriter(const ApiServerOptions& options, std::string node, const EventPaces& paces)
    : api_server_(options), node_(std::move(node)), paces_(paces) {
  StartClientThreads();
  thread_ = std::jthread([this](const std::stop_token& stop) { Run(stop); });
}

EventWriter::~EventWriter() {
  std::unique_lock lock(mutex_);
  ends_ = true;
  changed_.notify_all();
  changed_.wait_for(lock, kTimeAtTheEnd, [this] { return queue_.empty() && !writes_; });
  lock.unlock();
  thread_.request_stop();
  thread_.join();
}

void EventWriter::Tell(cri::PodEvent event) {
  const cri::PodContainer& names = event.of.names;
  if (!IsObjectName(names.pod_namespace) || !IsObjectName(names.pod)) return;  // no pod's
  const std::lock_guard lock(mutex_);
  if (!queue_.Put(std::move(event), steady_clock::now())) ++counts_.dropped;
  changed_.notify_all();
}

cri::EventCounts EventWriter::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

void EventWriter::Run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    const auto due = queue_.Due();
    if (!due) {
      changed_.wait(lock, stop, [this] { return !queue_.empty(); });
      continue;
    }
    // At the end there is no time to lose.
    auto taken = queue_.Take(ends_ ? steady_clock::time_point::max() : steady_clock::now());
    if (!taken) {
      changed_.wait_until(lock, stop, *due, [&] { return ends_ || queue_.Due() < due; });
      continue;
    }
    writes_ = true;
    lock.unlock();
    const Status written = Write(taken->series, stop);
    lock.lock();
    writes_ = false;
    const auto pause = Settle(*taken, written);
    if (ends_ && !written.ok()) return;
    changed_.notify_all();
    changed_.wait_for(lock, stop, pause, [this] { return ends_; });
  }
}

Status EventWriter::Write(EventSeries& series, const std::stop_token& stop) {
  Status status = NotFound("");
  if (series.is_there) {
    status = api_server_
                 .Change("PATCH", PathOf(series.latest) + "/" + series.object, kMergePatch,
                         ChangesOf(series), stop)
                 .status();
  }
  if (status.code() == StatusCode::kNotFound) status = Create(series, stop);
  const bool is_away = status.code() == StatusCode::kUnavailable;
  if (!status.ok() && !stop.stop_requested() && !(is_away && is_away_)) {
    log::Warn(
        is_away ? "events wait for the API server, ignoring" : "an event is not written, ignoring",
        {{"pod", series.latest.of.names.pod},
         {"event", series.latest.reason},
         {"reason", ToText(status)}});
  }
  is_away_ = is_away;
  return status;
}

Status EventWriter::Create(EventSeries& series, const std::stop_token& stop) {
  if (series.is_there || series.object.empty()) {
    series.object = NewName(series.latest, ++last_number_);
    series.is_there = false;
  }
  const Status made = api_server_
                          .Change("POST", PathOf(series.latest), kJson,
                                  ObjectOf(series, series.object, node_), stop)
                          .status();
  // An earlier try had come through, and its answer had not.
  return made.code() == StatusCode::kAlreadyExists ? OkStatus() : made;
}

std::chrono::milliseconds EventWriter::Settle(const EventQueue::Taken& taken,
                                              const Status& status) {
  const auto now = steady_clock::now();
  const StatusCode code = status.code();
  if (code == StatusCode::kOk) {
    counts_.written += taken.series.untold;
    queue_.Written(taken, now);
    return paces_.between_writes;
  }
  if (code == StatusCode::kUnavailable) {
    if (!queue_.PutBack(taken, now, now)) counts_.dropped += taken.series.untold;
    return std::max<std::chrono::milliseconds>(paces_.while_away, RetryAfterOf(status));
  }
  queue_.Drop(taken);
  counts_.dropped += taken.series.untold;
  return paces_.between_writes;
}

}  // namespace stasis::kubelet_api
