// The same look at many things, by two threads.
#pragma once

#include <cstddef>
#include <future>
#include <span>

#include "engine/base/status.h"

namespace stasis {

/// Calls `step` for each of `items`, for the second half of them in a thread of its own when they are `many`, for a
/// thread costs some 50 us, a file of /proc 10. Anybody may read those; ptrace(2) belongs to a thread. The error of
/// the first item that has one; what follows it in its half is left out.
template <typename Item, typename Step>
Status InHalves(std::span<Item> items, const Step& step, std::size_t many = 32) {
  const auto each = [&step](std::span<Item> part) -> Status {
    for (Item& item : part) RETURN_IF_ERROR(step(item));
    return OkStatus();
  };
  if (items.size() < many) return each(items);
  const std::size_t half = items.size() / 2;
  std::future<Status> second =
      std::async(std::launch::async, [&] { return each(items.subspan(half)); });
  const Status first = each(items.first(half));
  const Status rest = second.get();
  return first.ok() ? rest : first;
}

}  // namespace stasis
