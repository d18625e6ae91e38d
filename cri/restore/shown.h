// Shows clients the container that they asked for, not the one that the runtime was given.
#pragma once

#include "cri/proxy/server.h"
#include "cri/restore/records.h"

namespace stasis::cri {

/// Puts the checkpoint image, and the command of the request, in place of base image and
/// placeholder.
void ShowAsAsked(const RestoredContainer& record, runtime::v1::ContainerStatus& status);
void ShowAsAsked(const RestoredContainer& record, runtime::v1::ContainerStatusResponse& response);
void ShowAsAsked(const RestoredContainer& record, runtime::v1::Container& container);

/// Does so in every answer that shows containers. `records` outlives the table.
void AddShownFilters(const Records& records, MethodTable& table);

}  // namespace stasis::cri
