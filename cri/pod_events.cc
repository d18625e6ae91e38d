#include "cri/pod_events.h"

#include <absl/strings/str_format.h>

#include <array>

namespace stasis::cri {

EventSubject SubjectOf(const google::protobuf::Map<std::string, std::string>& labels) {
  const auto uid = labels.find(kPodUidLabel);
  return {.names = NamesOf(labels), .pod_uid = uid == labels.end() ? "" : uid->second};
}

std::string SizeText(std::uint64_t bytes) {
  constexpr std::array<const char*, 4> kUnits = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return absl::StrFormat("%d bytes", bytes);
  double size = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  for (; size >= 1024 && unit + 1 < kUnits.size(); ++unit) size /= 1024;
  return absl::StrFormat("%.1f %s", size, kUnits[unit]);
}

std::string TimeText(std::chrono::microseconds time) {
  const auto micros = static_cast<double>(time.count());
  return micros < 1e6 ? absl::StrFormat("%.1f ms", micros / 1e3)
                      : absl::StrFormat("%.1f s", micros / 1e6);
}

}  // namespace stasis::cri
