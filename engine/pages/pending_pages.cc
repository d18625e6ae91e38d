#include "engine/pages/pending_pages.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace stasis::engine::pages {

bool PendingPages::Add(const PendingRun& run) {
  if (run.start >= run.end) return false;
  const auto next = runs_.lower_bound(run.start);
  if (next != runs_.end() && next->first < run.end) return false;
  if (next != runs_.begin() && std::prev(next)->second.end > run.start) return false;
  runs_.emplace_hint(next, run.start, Rest{run.end, run.file, run.offset});
  bytes_ += run.end - run.start;
  return true;
}

std::optional<PendingRun> PendingPages::At(std::uint64_t address) const {
  const auto run = From(address);
  return run && run->start <= address ? run : std::nullopt;
}

std::optional<PendingRun> PendingPages::From(std::uint64_t address) const {
  auto run = runs_.upper_bound(address);
  if (run != runs_.begin() && std::prev(run)->second.end > address) --run;
  if (run == runs_.end()) return std::nullopt;
  const auto& [start, rest] = *run;
  const std::uint64_t page = std::max(start, address & ~(kPageBytes - 1));
  return PendingRun{page, rest.end, rest.file, rest.offset + (page - start)};
}

void PendingPages::Remove(std::uint64_t start, std::uint64_t end) {
  auto run = runs_.upper_bound(start);
  if (run != runs_.begin() && std::prev(run)->second.end > start) --run;
  while (run != runs_.end() && run->first < end) {
    const std::uint64_t first = run->first;
    const Rest rest = run->second;
    run = runs_.erase(run);
    bytes_ -= rest.end - first;
    if (first < start) (void)Add({first, start, rest.file, rest.offset});
    if (rest.end > end) (void)Add({end, rest.end, rest.file, rest.offset + (end - first)});
  }
}

void PendingPages::Move(std::uint64_t from, std::uint64_t to, std::uint64_t size) {
  std::vector<PendingRun> moved;
  for (auto run = From(from); run && run->start < from + size; run = From(run->end)) {
    run->end = std::min(run->end, from + size);
    moved.push_back(*run);
  }
  Remove(from, from + size);
  Remove(to, to + size);
  for (PendingRun& run : moved) {
    run.start = run.start - from + to;
    run.end = run.end - from + to;
    (void)Add(run);
  }
}

}  // namespace stasis::engine::pages
