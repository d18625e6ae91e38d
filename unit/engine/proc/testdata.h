// Real texts of /proc, kept in unit/testdata/proc (tests run in the project's root).
#pragma once

#include <fcntl.h>

#include <string>

#include "engine/base/io.h"
#include "unit/support/matchers.h"

namespace stasis::engine {

inline std::string ProcText(const std::string& name) {
  const Result<std::string> text = ReadFileAt(AT_FDCWD, "unit/testdata/proc/" + name);
  EXPECT_THAT(text, stasis::testing::IsOk());
  return text.ok() ? *text : "";
}

}  // namespace stasis::engine
