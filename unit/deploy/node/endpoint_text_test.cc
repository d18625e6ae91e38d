#include "deploy/node/endpoint_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "unit/support/matchers.h"

namespace stasis::node {
namespace {

using ::stasis::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::Optional;

const std::string kConfig =
    "kind: KubeletConfiguration\n"
    "containerRuntimeEndpoint: 'unix:///a' # ours\n"
    "nested:\n  containerRuntimeEndpoint: no\n";

TEST(EndpointTextTest, ReadsTheTopLevelKeyWithoutQuotesAndComment) {
  EXPECT_THAT(*EndpointIn(kConfig, Syntax::kYaml), Optional(std::string("unix:///a")));
}

TEST(EndpointTextTest, ReplacesTheLineOfTheKeyAlone) {
  EXPECT_EQ(*WithEndpoint(kConfig, Syntax::kYaml, "unix:///b"),
            "kind: KubeletConfiguration\n"
            "containerRuntimeEndpoint: \"unix:///b\"\n"
            "nested:\n  containerRuntimeEndpoint: no\n");
}

TEST(EndpointTextTest, AddsAMissingKeyAndTakesItOutAgain) {
  const std::string without = "kind: KubeletConfiguration\n";
  const std::string with = *WithEndpoint(without, Syntax::kYaml, "unix:///b");
  EXPECT_THAT(*EndpointIn(with, Syntax::kYaml), Optional(std::string("unix:///b")));
  EXPECT_EQ(*WithEndpoint(with, Syntax::kYaml, std::nullopt), without);
}

TEST(EndpointTextTest, FindsAFlagBehindAnEqualsSignOrABlank) {
  for (const std::string text : {"ARGS=\"--v=2 --container-runtime-endpoint=unix:///a\"\n",
                                 "ExecStart=/k --container-runtime-endpoint unix:///a --v=2\n"}) {
    EXPECT_THAT(*EndpointIn(text, Syntax::kFlag), Optional(std::string("unix:///a"))) << text;
  }
}

TEST(EndpointTextTest, SeesNoFlagInACommentOrInALongerFlag) {
  for (const std::string text : {"# --container-runtime-endpoint=unix:///a\n",
                                 "--container-runtime-endpoint-other=unix:///a\n",
                                 "--no--container-runtime-endpoint=unix:///a\n"}) {
    EXPECT_EQ(*EndpointIn(text, Syntax::kFlag), std::nullopt) << text;
  }
}

TEST(EndpointTextTest, TellsTheValuesOfAnyFlag) {
  const std::string text =
      "# --config-dir=/a\nA=\"--config-dir=/b --config=/c\"\nB=--config-dir /d\n";
  EXPECT_THAT(ValuesOf(text, "--config-dir"), ElementsAre("/b", "/d"));
  EXPECT_THAT(ValuesOf(text, "--config"), ElementsAre("/c"));
}

TEST(EndpointTextTest, RefusesWhatNobodyCouldDecide) {
  const std::string twice = "containerRuntimeEndpoint: a\ncontainerRuntimeEndpoint: b\n";
  EXPECT_THAT(EndpointIn(twice, Syntax::kYaml), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_THAT(EndpointIn(" {\"kind\": 1}", Syntax::kYaml), StatusIs(StatusCode::kUnimplemented));
  EXPECT_THAT(WithEndpoint("--v=2", Syntax::kFlag, "unix:///b"),
              StatusIs(StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace stasis::node
