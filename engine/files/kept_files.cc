#include "engine/files/kept_files.h"

#include <string_view>
#include <utility>

#include "engine/files/description.h"
#include "engine/proc/text.h"

namespace stasis::engine {
namespace {

constexpr std::string_view kGivenTo =
    " given to ";  // and the id of the entry: in a name without a file

// The id of the entry that was given the file under `key`; 0: none.
std::uint32_t GivenTo(const std::string& key, FileRestoreContext& context) {
  const std::string prefix = key + std::string(kGivenTo);
  const auto given = context.Kept().lower_bound(prefix);
  if (given == context.Kept().end() || !given->first.starts_with(prefix)) return 0;
  return text::Number<std::uint32_t>(std::string_view(given->first).substr(prefix.size()))
      .value_or(0);
}

}  // namespace

bool IsKept(const std::string& key, FileRestoreContext& context) {
  return context.Kept().contains(key) || GivenTo(key, context) != 0;
}

int KeptFd(const std::string& key, FileRestoreContext& context) {
  const auto found = context.Kept().find(key);
  if (found != context.Kept().end()) return found->second.get();
  const std::uint32_t id = GivenTo(key, context);
  return id == 0 ? -1 : context.Restored(id).value_or(-1);
}

Result<UniqueFd> GiveKept(const std::string& key, std::uint32_t id, FileRestoreContext& context) {
  const auto found = context.Kept().find(key);
  if (found == context.Kept().end() || id == 0) return Duplicate(KeptFd(key, context));
  UniqueFd fd = std::move(found->second);
  context.Kept().erase(found);
  context.Kept().try_emplace(key + std::string(kGivenTo) + std::to_string(id));
  return fd;
}

}  // namespace stasis::engine
