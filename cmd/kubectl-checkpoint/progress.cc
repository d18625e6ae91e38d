#include "cmd/kubectl-checkpoint/progress.h"

#include <unistd.h>

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>

namespace stasis::kubectl {
namespace {

using nlohmann::json;

constexpr auto kBetweenLooks = std::chrono::seconds(1);
constexpr const char* kClearLine = "\r\033[K";

bool OnTerminal() { return ::isatty(STDERR_FILENO) != 0; }

std::string Size(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.1f %s", bytes, kUnits[unit]);
  return text.data();
}

double NumberAt(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : 0;
}

}  // namespace

std::string ProgressText(const json& running, const std::string& pod,
                         const std::string& container) {
  for (const json& one : running.value("items", json::array())) {
    if (!one.is_object() || one.value("pod", "") != pod ||
        one.value("container", "") != container) {
      continue;
    }
    std::string text = std::to_string(static_cast<int>(NumberAt(one, "percent"))) + " % of " +
                       Size(NumberAt(one, "totalBytes")) + " of memory";
    if (const double frozen = NumberAt(one, "frozenMicroseconds"); frozen > 0) {
      std::array<char, 48> so_far;
      std::snprintf(so_far.data(), so_far.size(), ", frozen for %.2f s", frozen / 1e6);
      text += so_far.data();
    }
    return text;
  }
  return "";
}

Progress::Progress(const kubelet_api::Cluster& cluster, const kubelet_api::Pod& pod,
                   const std::string& pod_namespace, const std::string& container)
    : node_(pod.node), pod_namespace_(pod_namespace), pod_(pod.name), container_(container) {
  if (!OnTerminal()) return;
  thread_ = std::jthread([this, &cluster](const std::stop_token& stop) { Run(cluster, stop); });
}

Progress::~Progress() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  std::fputs(kClearLine, stderr);
}

void Progress::Run(const kubelet_api::Cluster& cluster, const std::stop_token& stop) const {
  const std::string head = "checkpointing " + pod_ + "/" + container_ + " on " + node_.name;
  std::fprintf(stderr, "%s", head.c_str());
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  bool answers = !node_.address.empty();
  while (!stop.stop_requested()) {
    never.wait_for(lock, stop, kBetweenLooks, [] { return false; });
    if (stop.stop_requested() || !answers) continue;
    // No more questions to one that does not answer, or not us.
    const auto running =
        cluster.GetAll({node_}, "/v1/namespaces/" + pod_namespace_ + "/running", 5);
    answers = running.front().ok();
    if (!answers || stop.stop_requested()) continue;
    const std::string text = ProgressText(*running.front(), pod_, container_);
    if (!text.empty()) std::fprintf(stderr, "%s%s: %s", kClearLine, head.c_str(), text.c_str());
  }
}

void Say(const std::string& text) {
  if (OnTerminal()) std::fprintf(stderr, "%s\n", text.c_str());
}

}  // namespace stasis::kubectl
