// /metrics: the Prometheus text format, version 0.0.4.
#pragma once

#include <string>

#include "cri/activity.h"

namespace stasis::kubelet_api {

std::string MetricsText(cri::Activity& activity);

}  // namespace stasis::kubelet_api
