#include "kubelet-api/metrics.h"

namespace stasis::kubelet_api {
namespace {

std::string Seconds(std::chrono::microseconds time) {
  return std::to_string(static_cast<double>(time.count()) / 1e6);
}

void Head(std::string& text, const std::string& name, const char* type, const char* help) {
  text += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

void One(std::string& text, const std::string& name, const char* type, const char* help,
         const std::string& value) {
  Head(text, name, type, help);
  text += name + " " + value + "\n";
}

void Failures(std::string& text, const std::string& name, const char* help,
              const cri::Totals& totals) {
  Head(text, name, "counter", help);
  for (const auto& [code, count] : totals.failed) {
    text +=
        name + "{code=\"" + absl::StatusCodeToString(code) + "\"} " + std::to_string(count) + "\n";
  }
}

}  // namespace

std::string MetricsText(cri::Activity& activity) {
  const cri::Totals checkpoints = activity.checkpoints();
  const cri::Totals restores = activity.restores();
  std::string text;
  One(text, "stasis_checkpoints_total", "counter", "Checkpoints that were made.",
      std::to_string(checkpoints.succeeded));
  Failures(text, "stasis_checkpoint_failures_total", "Checkpoints that failed, by gRPC code.",
           checkpoints);
  One(text, "stasis_checkpoint_bytes_total", "counter", "Size of the archives that were made.",
      std::to_string(checkpoints.bytes));
  One(text, "stasis_checkpoint_plain_bytes_total", "counter",
      "Size of the archives that were compressed, before that.",
      std::to_string(checkpoints.compression.plain_bytes));
  One(text, "stasis_checkpoint_compressed_bytes_total", "counter", "Size of them afterwards.",
      std::to_string(checkpoints.compression.stored_bytes));
  One(text, "stasis_checkpoint_compression_cpu_seconds_total", "counter",
      "Processor time that their compression took.",
      Seconds(std::chrono::duration_cast<std::chrono::microseconds>(checkpoints.compression.cpu)));
  One(text, "stasis_checkpoint_frozen_seconds_total", "counter",
      "Time in which containers stood still for their checkpoints.", Seconds(checkpoints.frozen));
  One(text, "stasis_checkpoint_seconds_total", "counter",
      "Time that checkpoints took, with that in which their containers ran.",
      Seconds(checkpoints.total));
  One(text, "stasis_checkpoints_running", "gauge", "Checkpoints under way.",
      std::to_string(activity.Running().size()));
  One(text, "stasis_restores_total", "counter", "Containers that were restored.",
      std::to_string(restores.succeeded));
  Failures(text, "stasis_restore_failures_total", "Restores that failed, by gRPC code.", restores);
  One(text, "stasis_restore_seconds_total", "counter", "Time that restores took.",
      Seconds(restores.total));
  One(text, "stasis_forwarded_calls_total", "counter",
      "CRI calls that were passed on to the container runtime.",
      std::to_string(activity.forwarded().load()));
  if (const cri::PodEvents* const events = activity.events(); events != nullptr) {
    const cri::EventCounts counts = events->counts();
    One(text, "stasis_events_written_total", "counter",
        "Events on pods that the API server has taken.", std::to_string(counts.written));
    One(text, "stasis_events_dropped_total", "counter",
        "Events on pods that it has not, as it was away for long or refused them.",
        std::to_string(counts.dropped));
  }
  return text;
}

}  // namespace stasis::kubelet_api
