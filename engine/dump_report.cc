#include <algorithm>
#include <limits>

#include "engine/dump.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/inventory.pb.h"

namespace stasis::engine {
namespace {

std::uint32_t Microseconds(std::chrono::microseconds time) {
  constexpr std::int64_t kMost = std::numeric_limits<std::uint32_t>::max();
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(time.count(), 0, kMost));
}

}  // namespace

void Stops::Add(std::chrono::steady_clock::duration time) {
  const auto length = std::chrono::duration_cast<std::chrono::microseconds>(time);
  ++count;
  total += length;
  longest = std::max(longest, length);
}

std::string DumpReport::StatsImage() const {
  image::StatsEntry stats;
  image::DumpStatsEntry& dump = *stats.mutable_dump();
  dump.set_freezing_time(Microseconds(freezing));
  dump.set_frozen_time(Microseconds(stops.total));
  // Pages are read and written in turns: there is one time for both.
  dump.set_memdump_time(Microseconds(memory));
  dump.set_memwrite_time(0);
  dump.set_pages_scanned(process_pages.scanned);
  dump.set_pages_skipped_parent(process_pages.in_parent);
  dump.set_pages_written(process_pages.written);
  dump.set_pages_lazy(0);
  dump.set_shpages_scanned(object_pages.scanned);
  dump.set_shpages_skipped_parent(object_pages.in_parent);
  dump.set_shpages_written(object_pages.written);
  ImageFileBuilder file("stats-dump");
  file.AddRecord(stats.SerializeAsString());
  return std::string(file.bytes());
}

}  // namespace stasis::engine
