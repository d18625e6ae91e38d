// The options that `stasis checkpoint` and `stasis restore` share with CRIU's command line.
#pragma once

#include <CLI/CLI.hpp>

#include "engine/options.h"

namespace stasis::cli {

/// Adds them to `command`; they are set in `options`, which outlives it.
void AddEngineOptions(CLI::App& command, engine::Options& options);

}  // namespace stasis::cli
