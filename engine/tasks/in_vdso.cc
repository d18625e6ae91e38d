#include "engine/tasks/in_vdso.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/arch/arch.h"
#include "engine/proc/maps.h"

namespace stasis::engine {
namespace {

// Where it goes on, if that is code of its own: nothing of one in a system call, or that stays stopped.
std::optional<std::uint64_t> RunningAt(const FrozenThread& thread) {
  if (!thread.registers.ok() || thread.stop_signal != 0) return std::nullopt;
  if (arch::CallAt(*thread.registers)) return std::nullopt;
  return arch::InstructionPointer(*thread.registers);
}

bool HasThreadInVdso(const FrozenProcess& process) {
  std::vector<std::uint64_t> places;
  for (const FrozenThread& thread : process.threads) {
    if (const auto at = RunningAt(thread)) places.push_back(*at);
  }
  if (places.empty()) return false;
  const std::vector<Vma> areas = ReadMaps(process.proc.get()).value_or(std::vector<Vma>());
  const auto vdso = std::ranges::find(areas, "[vdso]", &Vma::path);
  if (vdso == areas.end()) return false;
  return std::ranges::any_of(places,
                             [&](std::uint64_t at) { return vdso->start <= at && at < vdso->end; });
}

}  // namespace

bool HasThreadInVdso(const FrozenTree& tree) {
  return std::ranges::any_of(tree.processes(),
                             [](const FrozenProcess& process) { return HasThreadInVdso(process); });
}

}  // namespace stasis::engine
