// The proxy between a client and a runtime, over real sockets: what goes in comes out.
#include <sys/stat.h>

#include <thread>
#include <utility>

#include "cri/proxy/server.h"
#include "cri/proxy/upstream.h"
#include "unit/cri/generic_client.h"
#include "unit/cri/raw_runtime.h"
#include "unit/cri/temporary_directory.h"
#include "unit/support/matchers.h"

namespace stasis::cri {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Answer;
using testing::BytesOf;
using testing::DeafStream;
using testing::EchoRuntime;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::RawRuntime;
using testing::StatusIs;
using testing::Stream;
using testing::TextOf;
using testing::Unary;

template <typename Condition>
bool Eventually(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

constexpr const char* kEcho = "/some.future.v9.Service/Echo";  // a method that nobody knows

class ProxyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Upstream>> upstream = Upstream::Open("unix://" + directory_ / "runtime");
    ASSERT_THAT(upstream, IsOk());
    upstream_ = std::move(*upstream);
    Serve({});
  }

  void Serve(MethodTable table) {
    server_.reset();
    Result<Listener> listener = Listen("unix://" + directory_ / "proxy");
    ASSERT_THAT(listener, IsOk());
    Result<std::unique_ptr<Server>> server =
        Server::Start(std::move(*listener), *upstream_, std::move(table), forwarded_);
    ASSERT_THAT(server, IsOk());
    server_ = std::move(*server);
  }

  Answer Call(const std::string& method, const std::string& text) {
    grpc::ClientContext context;
    return Unary(channel_, context, method, text);
  }

  testing::TemporaryDirectory directory_;
  EchoRuntime runtime_{directory_ / "runtime"};
  std::unique_ptr<Upstream> upstream_;
  std::atomic<std::uint64_t> forwarded_ = 0;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_ = testing::ChannelTo(directory_ / "proxy");
};

TEST_F(ProxyTest, PassesBytesAsTheyAre) {
  const std::string bytes("\x0a\x02\xff\xfe\0binary", 11);
  const Answer answer = Call(kEcho, bytes);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, bytes);
}

TEST_F(ProxyTest, PassesAnEmptyMessage) {
  const Answer answer = Call(kEcho, "");
  EXPECT_TRUE(answer.status.ok());
  EXPECT_EQ(answer.text, "");
}

TEST_F(ProxyTest, PassesMessagesAboveSixteenMebibytesBothWays) {
  std::string large((std::size_t{16} << 20) + 4096, 'x');
  large.back() = 'y';
  EXPECT_EQ(Call(kEcho, large).text, large);
}

TEST_F(ProxyTest, PassesMetadataBothWaysBinaryAndRepeated) {
  grpc::ClientContext context;
  const std::string binary("\0\x01\xff", 3);
  context.AddMetadata("x-trace", "one");
  context.AddMetadata("x-trace", "two");
  context.AddMetadata("x-raw-bin", binary);
  context.set_authority("localhost");
  ASSERT_TRUE(Unary(channel_, context, kEcho, "m").status.ok());
  const auto& initial = context.GetServerInitialMetadata();
  const auto& trailing = context.GetServerTrailingMetadata();
  EXPECT_EQ(initial.count("got-x-trace"), 2U);
  EXPECT_EQ(trailing.count("end-x-trace"), 2U);
  ASSERT_EQ(initial.count("got-x-raw-bin"), 1U);
  EXPECT_EQ(initial.find("got-x-raw-bin")->second, grpc::string_ref(binary.data(), 3));
  EXPECT_EQ(trailing.find("end-x-raw-bin")->second, grpc::string_ref(binary.data(), 3));
  EXPECT_EQ(initial.find("got-authority")->second, "localhost");
}

TEST_F(ProxyTest, PassesStatusMessageDetailsAndTrailersOfAnError) {
  grpc::ClientContext context;
  const Answer answer = Unary(channel_, context, "/a.B/Fail", "m");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(answer.status.error_message(), "no \"such\" thing: \xc3\xa4 100%");
  EXPECT_EQ(answer.status.error_details(), std::string("\x08\x05\0x", 4));
  EXPECT_EQ(context.GetServerTrailingMetadata().count("why-bin"), 1U);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-status-details-bin"), 1U);
}

TEST_F(ProxyTest, PassesAServerStreamInOrder) {
  Stream stream(channel_, "/a.B/Count");
  ASSERT_TRUE(stream.Write("1000"));
  ASSERT_TRUE(stream.HalfClose());
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(stream.Read(), std::to_string(i));
  EXPECT_EQ(stream.Read(), std::nullopt);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(ProxyTest, PassesAClientStreamAndItsHalfClose) {
  Stream stream(channel_, "/a.B/Join");
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(stream.Write("ab"));
  ASSERT_TRUE(stream.HalfClose());
  std::string expected;
  for (int i = 0; i < 100; ++i) expected += "ab";
  EXPECT_EQ(stream.Read(), expected);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(ProxyTest, PassesAConversationStepByStep) {
  Stream stream(channel_, "/a.B/Echo");
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(stream.Write(std::to_string(i)));
    ASSERT_EQ(stream.Read(), std::to_string(i));  // before the next is written, and unasked-for
  }
  ASSERT_TRUE(stream.HalfClose());
  EXPECT_EQ(stream.Read(), std::nullopt);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(ProxyTest, TellsTheRuntimeTheClientsDeadline) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(500));
  ASSERT_TRUE(Unary(channel_, context, kEcho, "m").status.ok());
  EXPECT_GT(runtime_.seconds_left, 490);
  EXPECT_LE(runtime_.seconds_left, 510);  // on the wire it has few digits, rounded up
}

TEST_F(ProxyTest, ADeadlineEndsTheCallAtBothEnds) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(100));
  EXPECT_EQ(Unary(channel_, context, "/a.B/Hang", "m").status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([this] { return runtime_.cancelled == 1; }));
}

TEST_F(ProxyTest, AClientThatCancelsCancelsTheRuntimesCall) {
  Stream stream(channel_, "/a.B/Hang");
  ASSERT_TRUE(stream.Write("m"));
  ASSERT_TRUE(Eventually([this] { return runtime_.hanging == 1; }));
  stream.context.TryCancel();
  EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([this] { return runtime_.cancelled == 1; }));
}

TEST_F(ProxyTest, AClientThatDisconnectsCancelsTheRuntimesCall) {
  auto channel = testing::ChannelTo(directory_ / "proxy");
  auto stream = std::make_unique<Stream>(channel, "/a.B/Hang");
  ASSERT_TRUE(stream->Write("m"));
  ASSERT_TRUE(Eventually([this] { return runtime_.hanging == 1; }));
  stream.reset();
  channel.reset();
  EXPECT_TRUE(Eventually([this] { return runtime_.cancelled == 1; }));
}

TEST_F(ProxyTest, ARetrySucceedsAfterTheRuntimeRestarted) {
  ASSERT_TRUE(Call("/a.B/Echo", "before").status.ok());
  runtime_.Stop();
  EXPECT_EQ(Call("/a.B/Echo", "gone").status.error_code(), grpc::StatusCode::UNAVAILABLE);
  runtime_.Start();
  const auto since = std::chrono::steady_clock::now();
  EXPECT_TRUE(Eventually([this] { return Call("/a.B/Echo", "back").status.ok(); }));
  EXPECT_LT(std::chrono::steady_clock::now() - since, seconds(3));
}

TEST_F(ProxyTest, ARetrySucceedsAfterTheProxyRestarted) {
  ASSERT_TRUE(Call("/a.B/Echo", "before").status.ok());
  Serve({});
  EXPECT_TRUE(Eventually([this] { return Call("/a.B/Echo", "back").status.ok(); }));
}

TEST_F(ProxyTest, ServesManyCallsAtOnce) {
  std::atomic<int> good = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([this, i, &good] {
      for (int j = 0; j < 200; ++j) {
        const std::string text = std::to_string(i * 1000 + j);
        if (Call(kEcho, text).text == text) ++good;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(good, 1600);
}

TEST_F(ProxyTest, AHandlerAnswersInPlaceOfTheRuntime) {
  MethodTable table;
  table.handlers["/a.B/Ours"] = [](const IncomingCall& call) {
    Reply reply;
    reply.message = BytesOf("ours: " + TextOf(call.request));
    reply.trailing = {{"x-by", "us"}};
    return reply;
  };
  Serve(std::move(table));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  EXPECT_EQ(Unary(channel_, context, "/a.B/Ours", "m").text, "ours: m");
  EXPECT_EQ(context.GetServerTrailingMetadata().count("x-by"), 1U);
  EXPECT_EQ(runtime_.calls, 0);
}

TEST_F(ProxyTest, AHandlerForwardsErrorsAndMetadataOfTheRuntime) {
  MethodTable table;
  table.handlers["/a.B/Fail"] = [this](const IncomingCall& call) {
    return upstream_->Forward(call, call.request);
  };
  Serve(std::move(table));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  const Answer answer = Unary(channel_, context, "/a.B/Fail", "m");
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(answer.status.error_details(), std::string("\x08\x05\0x", 4));
  EXPECT_EQ(context.GetServerTrailingMetadata().count("why-bin"), 1U);
}

TEST_F(ProxyTest, AHandlerIsToldThatItsClientHasGone) {
  MethodTable table;
  table.handlers["/a.B/Hang"] = [this](const IncomingCall& call) {
    return upstream_->Forward(call, call.request);
  };
  Serve(std::move(table));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(500));
  EXPECT_FALSE(Unary(channel_, context, "/a.B/Hang", "m").status.ok());
  EXPECT_TRUE(Eventually([this] { return runtime_.cancelled == 1; }));
}

TEST_F(ProxyTest, PassesMetadataUpToWhatOneFieldMayHold) {
  grpc::ClientContext context;
  const std::string long_value(std::size_t{60} << 10, 'v');
  context.AddMetadata("x-long", long_value);
  ASSERT_TRUE(Unary(channel_, context, kEcho, "m").status.ok());
  EXPECT_EQ(context.GetServerTrailingMetadata().find("end-x-long")->second, long_value);
}

TEST_F(ProxyTest, AClientThatDoesNotReadStopsItsRuntimeAndNobodyElse) {
  constexpr int kMessages = 100'000'000;  // far more than all windows and buffers on the way hold
  Stream slow(channel_, "/a.B/Count");
  ASSERT_TRUE(slow.Write(std::to_string(kMessages)));
  ASSERT_TRUE(slow.HalfClose());
  int before = -1;
  ASSERT_TRUE(Eventually([&] {
    std::this_thread::sleep_for(milliseconds(200));
    return runtime_.counted > 0 && std::exchange(before, runtime_.counted) == runtime_.counted;
  }));
  EXPECT_LT(runtime_.counted, kMessages);
  EXPECT_EQ(Call(kEcho, "m").text, "m");
  for (int i = 0; i < 100; ++i) ASSERT_EQ(slow.Read(), std::to_string(i));
}

TEST_F(ProxyTest, AFilterChangesMessagesOnTheirWay) {
  MethodTable table;
  table.filters[kEcho].response = [](grpc::ByteBuffer& message) {
    message = BytesOf(TextOf(message) + "!");
  };
  Serve(std::move(table));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  EXPECT_EQ(Unary(channel_, context, kEcho, "m").text, "m!");
}

TEST_F(ProxyTest, AFilterSeesMessagesWholeHoweverTheyCome) {
  MethodTable table;
  table.filters[kEcho].request = [](grpc::ByteBuffer& message) {
    message = BytesOf("<" + TextOf(message) + ">");
  };
  Serve(std::move(table));
  const std::string large(std::size_t{17} << 20, 'x');
  EXPECT_EQ(Call(kEcho, large).text, "<" + large + ">");
  Stream stream(channel_, kEcho);
  for (const std::string text : {"", "a", "bc"}) {
    ASSERT_TRUE(stream.Write(text));
    EXPECT_EQ(stream.Read(), "<" + text + ">");
  }
  ASSERT_TRUE(stream.HalfClose());
  EXPECT_EQ(stream.Read(), std::nullopt);
}

// What a runtime does to its connections, which gRPC's own server cannot be made to do.
class RuntimeConnectionTest : public ProxyTest {
 protected:
  static constexpr std::string_view kLost = "the container runtime closed the connection";

  void Answer(const RawRuntime::Asked& asked) {
    runtime_.Stop();
    raw_ = std::make_unique<RawRuntime>(directory_ / "runtime", asked);
  }

  const Headers first_ = {{":status", "200"}, {"content-type", "application/grpc"}};
  std::unique_ptr<RawRuntime> raw_;
};

TEST_F(RuntimeConnectionTest, ACallThatItsRuntimeLosesIsUnavailable) {
  Answer([](Http2Connection& connection, DeafStream&) { ::shutdown(connection.fd(), SHUT_RDWR); });
  const auto [status, text] = Call(kEcho, "m");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr(kLost));
}

TEST_F(RuntimeConnectionTest, ACallThatItsRuntimeLosesInTheMiddleIsUnavailable) {
  Answer([this](Http2Connection& connection, DeafStream& stream) {
    stream.Respond(first_, false);
    connection.Flush();
    ::shutdown(connection.fd(), SHUT_RDWR);
  });
  const auto [status, text] = Call(kEcho, "m");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr(kLost));
}

TEST_F(RuntimeConnectionTest, AnAnswerBeforeTheRequestsEndEndsTheCall) {
  Answer([this](Http2Connection&, DeafStream& stream) {
    stream.Respond(first_, false);
    stream.End({{"grpc-status", "7"}, {"grpc-message", "enough"}});
  });
  Stream stream(channel_, kEcho);
  const grpc::Status status = stream.Finish();  // of a call whose request is not ended
  EXPECT_EQ(status.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(status.error_message(), "enough");
}

TEST_F(RuntimeConnectionTest, AConnectionThatTakesNoMoreCallsKeepsThoseItHas) {
  std::atomic<int> asked = 0;
  DeafStream* waiting = nullptr;
  Answer([&](Http2Connection& connection, DeafStream& stream) {
    if (++asked == 1) {
      waiting = &stream;
      return connection.GoAway();
    }
    stream.Respond(first_, false);
    stream.End({{"grpc-status", "5"}});
    waiting->Respond(first_, false);
    waiting->End({{"grpc-status", "6"}});
  });
  Stream first(channel_, kEcho);
  ASSERT_TRUE(Eventually([&] { return asked == 1; }));
  // What is asked before the word has come is refused with UNAVAILABLE.
  ASSERT_TRUE(Eventually(
      [&] { return Call(kEcho, "m").status.error_code() == grpc::StatusCode::NOT_FOUND; }));
  EXPECT_EQ(first.Finish().error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST(StatusTest, ALongMessageOfOursFitsIntoATrailer) {
  const std::string message =
      ToGrpc(Internal(std::string(std::size_t{1} << 20, 'x'))).error_message();
  EXPECT_THAT(message, ::testing::SizeIs(::testing::Lt(std::size_t{20} << 10)));
  EXPECT_THAT(message, ::testing::EndsWith("…"));
}

TEST_F(ProxyTest, TheSocketIsForRootAndItsGroupOnly) {
  struct stat status{};
  ASSERT_THAT(::stat((directory_ / "proxy").c_str(), &status), testing::SyscallSucceeds());
  EXPECT_EQ(status.st_mode & 0007, 0U);
}

TEST_F(ProxyTest, ASecondProxyOnTheSameSocketIsRefused) {
  EXPECT_THAT(Listen("unix://" + directory_ / "proxy"),
              StatusIs(StatusCode::kAlreadyExists, HasSubstr("another process serves")));
}

TEST(ListenerTest, AFileThatIsNoSocketIsLeftAlone) {
  testing::TemporaryDirectory directory;
  std::FILE* file = std::fopen((directory / "file").c_str(), "w");
  std::fclose(file);
  EXPECT_THAT(Listen(directory / "file"), StatusIs(StatusCode::kFailedPrecondition));
  EXPECT_TRUE(std::filesystem::exists(directory / "file"));
}

TEST(ListenerTest, AnAddressThatIsNoAbsolutePathIsRefused) {
  EXPECT_THAT(Listen("tcp://127.0.0.1:80"), StatusIs(StatusCode::kInvalidArgument));
  EXPECT_THAT(Listen("unix://relative"), StatusIs(StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace stasis::cri
