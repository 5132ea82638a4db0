// An OpenAI-compatible upstream for measuring gateways: one epoll thread, HTTP/1.1 with keep-alive, no model.
//
//   upstream [--port N] [--tokens N] [--interval-us N] [--delay-us N] [--head-delay-us N]
//
// Port 0 (the default) takes a free one; the first line of output says which: "listening N".
//
//   POST /v1/...            "stream": true  -> role chunk, `tokens` content chunks one per `interval_us`, finish chunk,
//                                              usage chunk (only with "include_usage": true), [DONE]
//                           otherwise       -> one answer after `delay_us`
//   GET  /v1/models, /health
//   GET  /stats             what started, finished and was aborted, and when the last abort was seen
//   POST /set?tokens=N&interval_us=N&delay_us=N&head_delay_us=N      changes what is given, for requests from now on
//
// `head_delay_us` holds back a stream's status line, `delay_us` a plain answer: work that a client can walk away from.
#define _GNU_SOURCE
#include "http1.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_REQUEST_BYTES = 16 << 20,
    FIRST_INPUT_BYTES = 8192,
    EVENTS_AT_ONCE = 1024,
    MAX_EVENT_BYTES = 512,
    LIFETIME_S = 2 * 3600,  // a forgotten one ends by itself
};

#define CHUNK_OPENING \
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","

struct settings {
    long tokens, interval_us, delay_us, head_delay_us;
};

struct statistics {
    long accepted, open;                             // connections
    long started, finished, aborted, active;         // streams
    long answered, pending, plain_aborted;           // plain answers
    int64_t last_abort_us;                           // on the monotonic clock; 0: none yet
};

struct connection {
    int socket;
    uint32_t interest;  // epoll events asked for
    enum { IDLE, ANSWER_DUE, HEAD_DUE, STREAMING } activity;
    long sent_tokens;
    int wants_usage;
    char *input;
    size_t input_length, input_capacity;
    char *output;
    size_t output_length, output_sent, output_capacity;
    int64_t due_us;  // when the next piece is to be written, while in the schedule
    int scheduled;
    struct connection *earlier, *later;
};

struct server {
    int epoll, listener;
    struct settings settings;
    struct statistics statistics;
    struct connection *first, *last;  // the schedule, soonest first
};

static const char PLAIN_ANSWER[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\",\"choices\":["
    "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"A wheel turns because water wants to be lower than it "
    "is, and we let it go there in our own way.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":20,"
    "\"total_tokens\":32}}";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"bench\"}]}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char ROLE_EVENT[] =
    "data: " CHUNK_OPENING
    "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
static const char FINISH_EVENT[] =
    "data: " CHUNK_OPENING "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";

// ---- the schedule: connections with something due, soonest first

static void unschedule(struct server *server, struct connection *connection) {
    if (!connection->scheduled) return;
    *(connection->earlier ? &connection->earlier->later : &server->first) = connection->later;
    *(connection->later ? &connection->later->earlier : &server->last) = connection->earlier;
    connection->earlier = connection->later = NULL;
    connection->scheduled = 0;
}

// Searched from the end: with one interval for all, a new one belongs there.
static void schedule(struct server *server, struct connection *connection, int64_t due_us) {
    struct connection *before = server->last;
    while (before && before->due_us > due_us) before = before->earlier;
    connection->due_us = due_us;
    connection->earlier = before;
    connection->later = before ? before->later : server->first;
    *(connection->later ? &connection->later->earlier : &server->last) = connection;
    *(before ? &before->later : &server->first) = connection;
    connection->scheduled = 1;
}

// ---- writing

static void watch(struct server *server, struct connection *connection, uint32_t interest) {
    if (connection->interest == interest) return;
    struct epoll_event event = {.events = interest, .data.ptr = connection};
    epoll_ctl(server->epoll, connection->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, connection->socket, &event);
    connection->interest = interest;
}

static void count_abort(struct server *server, struct connection *connection) {
    struct statistics *statistics = &server->statistics;
    if (connection->activity == IDLE) return;
    statistics->last_abort_us = now_us();
    if (connection->activity == ANSWER_DUE) {
        statistics->plain_aborted++;
        statistics->pending--;
    } else {
        statistics->aborted++;
        statistics->active--;
    }
}

static void drop(struct server *server, struct connection *connection) {
    count_abort(server, connection);
    unschedule(server, connection);
    server->statistics.open--;
    close(connection->socket);
    free(connection->input);
    free(connection->output);
    free(connection);
}

static void add_output(struct connection *connection, const char *bytes, size_t length) {
    if (connection->output_length + length > connection->output_capacity) {
        connection->output_capacity = (connection->output_length + length) * 2;
        connection->output = must(realloc(connection->output, connection->output_capacity));
    }
    memcpy(connection->output + connection->output_length, bytes, length);
    connection->output_length += length;
}

static void add_chunk(struct connection *connection, const char *event, size_t length) {
    char size[24];
    add_output(connection, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", length));
    add_output(connection, event, length);
    add_output(connection, "\r\n", 2);
}

static void add_answer(struct connection *connection, const char *body) {
    char head[128];
    int length = snprintf(head, sizeof head,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", strlen(body));
    add_output(connection, head, (size_t)length);
    add_output(connection, body, strlen(body));
}

// Writes what the socket takes. 0: the connection is gone, and so is its memory.
static int flush(struct server *server, struct connection *connection) {
    while (connection->output_sent < connection->output_length) {
        ssize_t sent = send(connection->socket, connection->output + connection->output_sent,
                            connection->output_length - connection->output_sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(server, connection, EPOLLIN | EPOLLRDHUP | EPOLLOUT);
            return 1;
        }
        if (sent < 0) {
            drop(server, connection);
            return 0;
        }
        connection->output_sent += (size_t)sent;
    }
    connection->output_length = connection->output_sent = 0;
    watch(server, connection, EPOLLIN | EPOLLRDHUP);
    return 1;
}

// ---- answering

static void add_token(struct connection *connection) {
    char event[MAX_EVENT_BYTES];
    int length = snprintf(event, sizeof event,
                          "data: " CHUNK_OPENING
                          "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" tok%ld\"},\"finish_reason\":null}]}\n\n",
                          connection->sent_tokens++);
    add_chunk(connection, event, (size_t)length);
}

static void add_usage(struct connection *connection, long tokens) {
    char event[MAX_EVENT_BYTES];
    int length = snprintf(event, sizeof event,
                          "data: " CHUNK_OPENING "\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":%ld,"
                          "\"total_tokens\":%ld}}\n\n",
                          tokens, tokens + 12);
    add_chunk(connection, event, (size_t)length);
}

static void end_stream(struct server *server, struct connection *connection) {
    add_chunk(connection, FINISH_EVENT, sizeof FINISH_EVENT - 1);
    if (connection->wants_usage) add_usage(connection, connection->sent_tokens);
    add_chunk(connection, "data: [DONE]\n\n", 14);
    add_output(connection, "0\r\n\r\n", 5);
    connection->activity = IDLE;
    server->statistics.finished++;
    server->statistics.active--;
}

static void begin_stream(struct connection *connection) {
    connection->activity = STREAMING;
    add_output(connection, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    add_chunk(connection, ROLE_EVENT, sizeof ROLE_EVENT - 1);
}

static void answer_plain(struct server *server, struct connection *connection) {
    if (connection->activity == ANSWER_DUE) server->statistics.pending--;
    connection->activity = IDLE;
    server->statistics.answered++;
    add_answer(connection, PLAIN_ANSWER);
}

// Writes the piece that is due. 0: the connection is gone.
static int step(struct server *server, struct connection *connection) {
    if (connection->activity == ANSWER_DUE) {
        answer_plain(server, connection);
    } else if (connection->activity == HEAD_DUE) {
        begin_stream(connection);
    } else {
        if (connection->sent_tokens < server->settings.tokens) add_token(connection);
        if (connection->sent_tokens >= server->settings.tokens) end_stream(server, connection);
    }
    return flush(server, connection);
}

static int start_stream(struct server *server, struct connection *connection) {
    server->statistics.started++;
    server->statistics.active++;
    connection->sent_tokens = 0;
    if (server->settings.head_delay_us) {
        connection->activity = HEAD_DUE;
        schedule(server, connection, now_us() + server->settings.head_delay_us);
        return 1;
    }
    begin_stream(connection);
    if (!flush(server, connection)) return 0;
    if (server->settings.interval_us) {
        schedule(server, connection, now_us() + server->settings.interval_us);
        return 1;
    }
    while (connection->activity == STREAMING)
        if (!step(server, connection)) return 0;
    return 1;
}

static int start_plain(struct server *server, struct connection *connection) {
    if (server->settings.delay_us) {
        connection->activity = ANSWER_DUE;
        server->statistics.pending++;
        schedule(server, connection, now_us() + server->settings.delay_us);
        return 1;
    }
    answer_plain(server, connection);
    return flush(server, connection);
}

static void add_statistics(struct connection *connection, const struct statistics *s) {
    char body[512];
    snprintf(body, sizeof body,
             "{\"accepted\":%ld,\"open\":%ld,\"started\":%ld,\"finished\":%ld,\"aborted\":%ld,\"active\":%ld,"
             "\"answered\":%ld,\"pending\":%ld,\"plain_aborted\":%ld,\"last_abort_us\":%" PRId64 "}",
             s->accepted, s->open, s->started, s->finished, s->aborted, s->active, s->answered, s->pending,
             s->plain_aborted, s->last_abort_us);
    add_answer(connection, body);
}

static void set_from_query(struct settings *settings, const char *query, size_t length) {
    const struct {
        const char *name;
        long *value;
    } known[] = {{"tokens=", &settings->tokens},
                 {"interval_us=", &settings->interval_us},
                 {"delay_us=", &settings->delay_us},
                 {"head_delay_us=", &settings->head_delay_us}};
    for (const char *at = query, *end = query + length; at && at < end; at = memchr(at, '&', (size_t)(end - at))) {
        if (*at == '&') at++;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++)
            if (!strncmp(at, known[i].name, strlen(known[i].name))) *known[i].value = atol(at + strlen(known[i].name));
    }
}

static int mentions(const char *body, size_t length, const char *member, const char *spaced) {
    return memmem(body, length, member, strlen(member)) || memmem(body, length, spaced, strlen(spaced));
}

// Answers one request, or schedules its answer. 0: the connection is gone.
static int serve(struct server *server, struct connection *connection, const char *head, const char *body,
                 size_t body_length) {
    if (!strncmp(head, "POST /set?", 10)) {
        set_from_query(&server->settings, head + 10, strcspn(head + 10, " \r"));
        add_statistics(connection, &server->statistics);
    } else if (!strncmp(head, "POST ", 5)) {
        connection->wants_usage = mentions(body, body_length, "\"include_usage\":true", "\"include_usage\": true");
        if (mentions(body, body_length, "\"stream\":true", "\"stream\": true")) return start_stream(server, connection);
        return start_plain(server, connection);
    } else if (!strncmp(head, "GET /stats", 10)) {
        add_statistics(connection, &server->statistics);
    } else if (!strncmp(head, "GET /v1/models", 14)) {
        add_answer(connection, MODELS);
    } else {
        add_answer(connection, "{\"status\":\"ok\"}");
    }
    return flush(server, connection);
}

// ---- reading

struct request {
    size_t body_length;  // as it was meant, coding taken off
    size_t length;       // head and body, as they were sent
};

// Takes the coding off in place. 0: not all of it is here. Begins anew with each read: bodies are few reads long.
static int dechunk(struct connection *connection, size_t head, struct request *request) {
    struct chunks chunks = {0};
    const char *at = connection->input + head, *end = connection->input + connection->input_length, *piece;
    size_t length;
    while (next_piece(&chunks, &at, end, &piece)) continue;
    if (chunks.state < CHUNKS_DONE) return 0;
    request->length = (size_t)(at - connection->input);
    char *to = connection->input + head;
    chunks = (struct chunks){0};
    for (at = to; (length = next_piece(&chunks, &at, end, &piece)); to += length) memmove(to, piece, length);
    request->body_length = (size_t)(to - connection->input) - head;
    return 1;
}

// Finds the first whole request in the input. 0: not all of it is here.
static int take_request(struct connection *connection, size_t *head, struct request *request) {
    *head = head_length(connection->input, connection->input_length);
    if (!*head) return 0;
    if (header_is(connection->input, *head, "transfer-encoding:", "chunked")) return dechunk(connection, *head, request);
    const char *length = header_value(connection->input, *head, "content-length:");
    request->body_length = length ? strtoul(length, NULL, 10) : 0;
    request->length = *head + request->body_length;
    return connection->input_length >= request->length;
}

static void grow_input(struct connection *connection) {
    size_t capacity = connection->input_capacity;
    if (connection->input_length < capacity) return;
    connection->input_capacity = capacity ? capacity * 4 : FIRST_INPUT_BYTES;
    connection->input = must(realloc(connection->input, connection->input_capacity));
}

// Reads while there is something to read. 0: the connection is gone.
static int fill_input(struct server *server, struct connection *connection) {
    for (;;) {
        grow_input(connection);
        size_t room = connection->input_capacity - connection->input_length;
        ssize_t got = recv(connection->socket, connection->input + connection->input_length, room, 0);
        if (got < 0 && errno == EAGAIN) return 1;
        if (got <= 0 || connection->input_length > MAX_REQUEST_BYTES) {
            drop(server, connection);
            return 0;
        }
        connection->input_length += (size_t)got;
        if ((size_t)got < room) return 1;  // epoll tells if there was more
    }
}

static void on_readable(struct server *server, struct connection *connection) {
    struct request request;
    size_t head;
    if (!fill_input(server, connection)) return;
    while (connection->activity == IDLE && connection->input_length && take_request(connection, &head, &request)) {
        if (!serve(server, connection, connection->input, connection->input + head, request.body_length)) return;
        connection->input_length -= request.length;
        memmove(connection->input, connection->input + request.length, connection->input_length);
    }
}

static void accept_all(struct server *server) {
    int socket, one = 1;
    while ((socket = accept4(server->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *connection = must(calloc(1, sizeof *connection));
        connection->socket = socket;
        server->statistics.accepted++;
        server->statistics.open++;
        watch(server, connection, EPOLLIN | EPOLLRDHUP);
    }
}

// ---- running

static int until_next_ms(const struct server *server) {
    if (!server->first) return -1;
    int64_t left_us = server->first->due_us - now_us();
    return left_us <= 0 ? 0 : (int)((left_us + 999) / 1000);
}

static void write_due(struct server *server) {
    int64_t now = now_us();
    while (server->first && server->first->due_us <= now) {
        struct connection *connection = server->first;
        int64_t due_us = connection->due_us;
        unschedule(server, connection);
        // From when it was due, not from now: the pace doesn't sink under load.
        if (step(server, connection) && connection->activity == STREAMING)
            schedule(server, connection, due_us + server->settings.interval_us);
    }
}

static void dispatch(struct server *server, const struct epoll_event *event) {
    struct connection *connection = event->data.ptr;
    if (!connection) {
        accept_all(server);
    } else if (event->events & (EPOLLERR | EPOLLHUP)) {
        drop(server, connection);
    } else {
        if ((event->events & EPOLLOUT) && !flush(server, connection)) return;
        if (event->events & (EPOLLIN | EPOLLRDHUP)) on_readable(server, connection);
    }
}

static void run(struct server *server) {
    static struct epoll_event events[EVENTS_AT_ONCE];
    for (;;) {
        int count = epoll_wait(server->epoll, events, EVENTS_AT_ONCE, until_next_ms(server));
        for (int i = 0; i < count; i++) dispatch(server, &events[i]);
        write_due(server);
    }
}

static void listen_on(struct server *server, uint16_t port) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    server->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(server->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server->listener, (struct sockaddr *)&address, length) || listen(server->listener, 4096) ||
        getsockname(server->listener, (struct sockaddr *)&address, &length)) {
        perror("listen");
        exit(1);
    }
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(server->epoll, EPOLL_CTL_ADD, server->listener, &event);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
}

static uint16_t read_options(int count, char **arguments, struct settings *settings) {
    static const struct option known[] = {{"port", 1, 0, 'p'},     {"tokens", 1, 0, 't'},        {"interval-us", 1, 0, 'i'},
                                          {"delay-us", 1, 0, 'd'}, {"head-delay-us", 1, 0, 'h'}, {0}};
    uint16_t port = 0;
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) {
        if (option == 'p') port = (uint16_t)atoi(optarg);
        else if (option == 't') settings->tokens = atol(optarg);
        else if (option == 'i') settings->interval_us = atol(optarg);
        else if (option == 'd') settings->delay_us = atol(optarg);
        else if (option == 'h') settings->head_delay_us = atol(optarg);
        else exit(2);
    }
    return port;
}

int main(int count, char **arguments) {
    struct server server = {.settings = {.tokens = 64}};
    uint16_t port = read_options(count, arguments, &server.settings);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    alarm(LIFETIME_S);
    raise_descriptor_limit();
    listen_on(&server, port);
    run(&server);
}
