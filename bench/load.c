// Load for an OpenAI-compatible endpoint over keep-alive HTTP/1.1: one epoll thread, one JSON line of results.
//
//   load --port N [--path /v1/chat/completions] [--conns N] [--seconds S] [--mode plain|stream|stream-no-usage]
//        [--pace-us N] [--spread-us N] [--expect-events N] [--leave-after N] [--drain S]
//        [--key K] [--model M] [--body FILE] [--dial-late]
//
// Closed loop: each connection has one request under way and starts the next when that one ended. With --pace-us it
// starts one every so many microseconds at most: a steady load below saturation, the same for every stack.
// The first requests start within --spread-us (default: the pace), so that streams don't all tick at the same moment;
// --seconds begin after that. After them nothing new starts; what is under way may end within --drain seconds, then it
// counts as "cut".
// All connections are opened before the first request, or with --dial-late each with its first request.
// --leave-after: the client closes its socket after that many events of a stream, and comes back ("left").
// --expect-events: a stream with another number of events is an error: nothing may be lost or added on the way.
//
// Answers are parsed as they come and not kept, so the memory doesn't depend on their length. Rates count what was
// complete within --seconds. A "gap" lies between two reads that brought events.
#define _GNU_SOURCE
#include "http1.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    EVENTS_AT_ONCE = 2048,
    READ_BYTES = 256 << 10,
    MAX_HEAD_BYTES = 16 << 10,
    MAX_SAMPLES = 4 << 20,  // of one kind; what is beyond isn't kept
    LINE_PREFIX_BYTES = 16,
    REDIAL_US = 10000,
};

struct options {
    int port, conns, streams, asks_usage, dials_late;
    double seconds, drain_s;
    long pace_us, spread_us, leave_after, expect_events;
    const char *path, *key, *model, *body_file;
};

struct samples {
    float *ms;
    size_t count, capacity;
};

struct connection {
    int socket;  // -1: none
    enum { WAITING, HEAD, BODY } state;
    uint32_t interest;
    size_t request_sent;
    char head[MAX_HEAD_BYTES];
    size_t head_bytes;
    int status, is_chunked, closes;
    struct chunks chunks;
    size_t body_left;              // without chunked coding
    char line[LINE_PREFIX_BYTES];  // how the line of the stream that is being read begins
    size_t line_bytes;
    long events;
    int saw_done, saw_error;
    int64_t started_us, first_event_us, last_event_us, due_us;
};

struct load {
    struct options options;
    int epoll;
    char *request;
    size_t request_bytes;
    struct connection *connections;
    int waiting;  // connections without a request under way
    int64_t began_us;
    int64_t counts_from_us, ends_us;  // the time that rates are of
    long ok, bad, left, redials, events;
    long ok_in_time, events_in_time;
    struct samples latency, first_event, gap;
    char first_error[160];
};

// ---- samples

static void add_sample(struct samples *samples, int64_t from_us, int64_t to_us) {
    if (samples->count == MAX_SAMPLES) return;
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? samples->capacity * 2 : 4096;
        samples->ms = must(realloc(samples->ms, samples->capacity * sizeof *samples->ms));
    }
    samples->ms[samples->count++] = (float)((double)(to_us - from_us) / 1000);
}

static int compare(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void print_percentiles(const char *name, struct samples *samples) {
    static const struct {
        const char *name;
        double share;
    } wanted[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"max", 1}};
    if (samples->count) qsort(samples->ms, samples->count, sizeof *samples->ms, compare);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        size_t at = samples->count ? (size_t)(wanted[i].share * (double)(samples->count - 1)) : 0;
        printf(",\"%s_%s_ms\":%.3f", name, wanted[i].name, samples->count ? (double)samples->ms[at] : 0.0);
    }
}

// ---- connections

static void watch(struct load *load, struct connection *connection, uint32_t interest) {
    if (connection->interest == interest) return;
    struct epoll_event event = {.events = interest, .data.ptr = connection};
    epoll_ctl(load->epoll, connection->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, connection->socket, &event);
    connection->interest = interest;
}

static void hang_up(struct connection *connection) {
    if (connection->socket >= 0) close(connection->socket);
    connection->socket = -1;
    connection->interest = 0;
}

// 0: nobody listens.
static int dial(struct load *load, struct connection *connection) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)load->options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connection->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(connection->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(connection->socket, (struct sockaddr *)&address, sizeof address)) {
        hang_up(connection);
        return 0;
    }
    watch(load, connection, EPOLLIN);
    return 1;
}

// ---- requests

static void wait_until(struct load *load, struct connection *connection, int64_t due_us) {
    if (connection->state != WAITING) load->waiting++;
    connection->state = WAITING;
    connection->due_us = due_us;
}

static void fail(struct load *load, struct connection *connection, const char *why) {
    load->bad++;
    if (!load->first_error[0])
        snprintf(load->first_error, sizeof load->first_error, "%s, status %d, %ld events", why, connection->status,
                 connection->events);
    hang_up(connection);
    wait_until(load, connection, now_us() + REDIAL_US);
}

static void send_rest(struct load *load, struct connection *connection) {
    ssize_t sent = send(connection->socket, load->request + connection->request_sent,
                        load->request_bytes - connection->request_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) {
        fail(load, connection, "the socket took no request");
        return;
    }
    connection->request_sent += sent > 0 ? (size_t)sent : 0;
    watch(load, connection, connection->request_sent < load->request_bytes ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void start(struct load *load, struct connection *connection) {
    if (connection->socket < 0) {
        if (connection->started_us || !load->options.dials_late) load->redials++;
        if (!dial(load, connection)) {
            fail(load, connection, "nobody listens");
            return;
        }
    }
    load->waiting--;
    connection->state = HEAD;
    connection->request_sent = connection->head_bytes = connection->line_bytes = 0;
    connection->status = connection->saw_done = connection->saw_error = 0;
    connection->events = 0;
    connection->first_event_us = connection->last_event_us = 0;
    connection->started_us = now_us();
    send_rest(load, connection);
}

static void start_due(struct load *load, int64_t now) {
    if (!load->waiting || now >= load->ends_us) return;
    for (int i = 0; i < load->options.conns; i++) {
        struct connection *connection = &load->connections[i];
        if (connection->state == WAITING && connection->due_us <= now) start(load, connection);
    }
}

static void come_to_an_end(struct load *load, struct connection *connection, int64_t now) {
    long pace_us = load->options.pace_us;
    if (connection->closes) hang_up(connection);
    wait_until(load, connection, pace_us ? connection->started_us + pace_us : now);
    if (!pace_us && now < load->ends_us) start(load, connection);
}

static int is_in_time(const struct load *load, int64_t now) {
    return now >= load->counts_from_us && now < load->ends_us;
}

static void leave(struct load *load, struct connection *connection, int64_t now) {
    load->left++;
    connection->closes = 1;
    come_to_an_end(load, connection, now);
}

static void finish(struct load *load, struct connection *connection, int64_t now) {
    const struct options *options = &load->options;
    if (connection->status != 200) {
        fail(load, connection, "not a 200");
    } else if (options->streams && (connection->saw_error || !connection->saw_done)) {
        fail(load, connection, connection->saw_error ? "an error event" : "no [DONE]");
    } else if (options->expect_events && connection->events != options->expect_events) {
        fail(load, connection, "not the expected number of events");
    } else {
        load->ok++;
        if (is_in_time(load, now)) load->ok_in_time++;
        add_sample(&load->latency, connection->started_us, now);
        come_to_an_end(load, connection, now);
    }
}

// ---- answers

static void end_line(struct connection *connection) {
    if (connection->line_bytes >= 5 && !memcmp(connection->line, "data:", 5)) connection->events++;
    if (connection->line_bytes >= 12 && !memcmp(connection->line, "data: [DONE]", 12)) connection->saw_done = 1;
    if (connection->line_bytes >= 14 && !memcmp(connection->line, "data: {\"error\"", 14)) connection->saw_error = 1;
    connection->line_bytes = 0;
}

static void read_lines(struct connection *connection, const char *at, size_t length) {
    for (const char *end = at + length; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at)), *stop = newline ? newline : end;
        size_t room = LINE_PREFIX_BYTES - connection->line_bytes, here = (size_t)(stop - at);
        if (here > room) here = room;
        memcpy(connection->line + connection->line_bytes, at, here);
        connection->line_bytes += here;
        if (newline) end_line(connection);
        at = stop + 1;
    }
}

// Reads body bytes. 1: the answer is complete.
static int read_body(struct load *load, struct connection *connection, const char *at, size_t length) {
    if (!connection->is_chunked) {
        if (load->options.streams) read_lines(connection, at, length);
        connection->body_left -= length < connection->body_left ? length : connection->body_left;
        return !connection->body_left;
    }
    const char *piece, *end = at + length;
    while ((length = next_piece(&connection->chunks, &at, end, &piece)))
        if (load->options.streams) read_lines(connection, piece, length);
    return connection->chunks.state >= CHUNKS_DONE;
}

static void note_events(struct load *load, struct connection *connection, long before, int64_t now) {
    if (connection->events == before) return;
    load->events += connection->events - before;
    if (is_in_time(load, now)) load->events_in_time += connection->events - before;
    if (before) {
        add_sample(&load->gap, connection->last_event_us, now);
    } else {
        connection->first_event_us = now;
        add_sample(&load->first_event, connection->started_us, now);
    }
    connection->last_event_us = now;
}

// Takes the head from the front of what was read: how many bytes of it, or -1 when it isn't one.
static ssize_t read_head(struct connection *connection, const char *bytes, size_t length) {
    size_t had = connection->head_bytes, room = MAX_HEAD_BYTES - had;
    memcpy(connection->head + had, bytes, length < room ? length : room);
    connection->head_bytes += length < room ? length : room;
    size_t head = head_length(connection->head, connection->head_bytes);
    if (!head) return connection->head_bytes == MAX_HEAD_BYTES ? -1 : (ssize_t)length;
    const char *body_length = header_value(connection->head, head, "content-length:");
    connection->status = atoi(connection->head + 9);
    connection->is_chunked = header_is(connection->head, head, "transfer-encoding:", "chunked");
    connection->closes = header_is(connection->head, head, "connection:", "close");
    connection->chunks = (struct chunks){0};
    connection->body_left = body_length ? strtoul(body_length, NULL, 10) : 0;
    connection->state = BODY;
    return (ssize_t)(head - had);
}

static void on_bytes(struct load *load, struct connection *connection, const char *bytes, size_t length) {
    int64_t now = now_us();
    long before = connection->events;
    if (connection->state == HEAD) {
        ssize_t taken = read_head(connection, bytes, length);
        if (taken < 0) {
            fail(load, connection, "no HTTP head");
            return;
        }
        bytes += taken;
        length -= (size_t)taken;
    }
    if (connection->state != BODY) return;
    int complete = read_body(load, connection, bytes, length);
    note_events(load, connection, before, now);
    if (complete) finish(load, connection, now);
    else if (load->options.leave_after && connection->events >= load->options.leave_after) leave(load, connection, now);
}

static void on_readable(struct load *load, struct connection *connection) {
    static char bytes[READ_BYTES];
    ssize_t got = recv(connection->socket, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got > 0 && connection->state != WAITING) {
        on_bytes(load, connection, bytes, (size_t)got);
    } else if (connection->state != WAITING) {
        fail(load, connection, "the connection broke off");
    } else {
        hang_up(connection);  // a kept connection was closed: the next request dials
    }
}

// ---- running

static int64_t next_wake_us(const struct load *load, int64_t now, int64_t last_us) {
    int64_t wake_us = now < load->ends_us ? load->ends_us : last_us;
    if (load->waiting && now < load->ends_us)
        for (int i = 0; i < load->options.conns; i++)
            if (load->connections[i].state == WAITING && load->connections[i].due_us < wake_us)
                wake_us = load->connections[i].due_us;
    return wake_us > now ? wake_us - now : 0;
}

static void run(struct load *load) {
    static struct epoll_event events[EVENTS_AT_ONCE];
    int64_t last_us = load->ends_us + (int64_t)(load->options.drain_s * 1e6);
    for (int64_t now = now_us(); now < last_us; now = now_us()) {
        if (now >= load->ends_us && load->waiting == load->options.conns) break;
        start_due(load, now);
        int64_t sleep_us = next_wake_us(load, now_us(), last_us);
        struct timespec sleep = {sleep_us / 1000000, sleep_us % 1000000 * 1000};
        int count = epoll_pwait2(load->epoll, events, EVENTS_AT_ONCE, &sleep, NULL);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) send_rest(load, connection);
            if (connection->socket >= 0 && events[i].events & ~(uint32_t)EPOLLOUT) on_readable(load, connection);
        }
    }
}

static void open_connections(struct load *load) {
    int conns = load->options.conns;
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->connections = must(calloc((size_t)conns, sizeof *load->connections));
    for (int i = 0; i < conns; i++) {
        load->connections[i].socket = -1;
        if (!load->options.dials_late && !dial(load, &load->connections[i])) {
            perror("connect");
            exit(1);
        }
    }
    int64_t now = load->began_us = now_us();  // only now: a short listen queue makes many connections take a second
    for (int i = 0; i < conns; i++) load->connections[i].due_us = now + load->options.spread_us * i / conns;
    load->waiting = conns;
    load->counts_from_us = now + load->options.spread_us;
    load->ends_us = load->counts_from_us + (int64_t)(load->options.seconds * 1e6);
}

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        exit(1);
    }
    size_t length = (size_t)ftell(file);
    char *text = must(calloc(1, length + 1));
    rewind(file);
    if (fread(text, 1, length, file) != length) exit(1);
    fclose(file);
    return text;
}

static char *default_body(const struct options *options) {
    char *body;
    const char *stream = !options->streams    ? ""
                         : options->asks_usage ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}"
                                               : ",\"stream\":true";
    if (asprintf(&body,
                 "{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"Tell me about water wheels, please.\"}],"
                 "\"max_tokens\":64%s}",
                 options->model, stream) < 0)
        must(NULL);
    return body;
}

static void write_request(struct load *load) {
    const struct options *options = &load->options;
    char *body = options->body_file ? read_file(options->body_file) : default_body(options);
    int length = asprintf(&load->request,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nContent-Type: "
                          "application/json\r\nAccept: */*\r\nContent-Length: %zu\r\n\r\n%s",
                          options->path, options->port, options->key, strlen(body), body);
    if (length < 0) must(NULL);
    load->request_bytes = (size_t)length;
    free(body);
}

static void print_results(struct load *load) {
    double seconds = load->options.seconds;
    printf("{\"ok\":%ld,\"bad\":%ld,\"left\":%ld,\"cut\":%d,\"redials\":%ld,\"events\":%ld", load->ok, load->bad, load->left,
           load->options.conns - load->waiting, load->redials, load->events);
    printf(",\"requests_per_s\":%.1f,\"events_per_s\":%.1f", (double)load->ok_in_time / seconds,
           (double)load->events_in_time / seconds);
    printf(",\"took_s\":%.3f", (double)(now_us() - load->began_us) / 1e6);
    print_percentiles("latency", &load->latency);
    print_percentiles("first_event", &load->first_event);
    print_percentiles("gap", &load->gap);
    printf(",\"first_error\":\"%s\"}\n", load->first_error);
}

static struct options read_options(int count, char **arguments) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},      {"path", 1, 0, 'u'},          {"conns", 1, 0, 'c'},       {"seconds", 1, 0, 's'},
        {"mode", 1, 0, 'm'},      {"pace-us", 1, 0, 'e'},       {"leave-after", 1, 0, 'l'}, {"drain", 1, 0, 'd'},
        {"key", 1, 0, 'k'},       {"model", 1, 0, 'o'},         {"body", 1, 0, 'b'},        {"expect-events", 1, 0, 'x'},
        {"spread-us", 1, 0, 'r'}, {"dial-late", 0, 0, 'i'},     {0}};
    struct options options = {.conns = 32, .seconds = 1, .drain_s = 2, .spread_us = -1,
                              .path = "/v1/chat/completions", .key = "sk-bench", .model = "bench"};
    for (int option; (option = getopt_long(count, arguments, "", known, NULL)) != -1;) switch (option) {
            case 'p': options.port = atoi(optarg); break;
            case 'u': options.path = optarg; break;
            case 'c': options.conns = atoi(optarg); break;
            case 's': options.seconds = atof(optarg); break;
            case 'm':
                options.streams = !strncmp(optarg, "stream", 6);
                options.asks_usage = !strcmp(optarg, "stream");
                break;
            case 'e': options.pace_us = atol(optarg); break;
            case 'r': options.spread_us = atol(optarg); break;
            case 'l': options.leave_after = atol(optarg); break;
            case 'x': options.expect_events = atol(optarg); break;
            case 'd': options.drain_s = atof(optarg); break;
            case 'i': options.dials_late = 1; break;
            case 'k': options.key = optarg; break;
            case 'o': options.model = optarg; break;
            case 'b': options.body_file = optarg; break;
            default: exit(2);
        }
    if (options.spread_us < 0) options.spread_us = options.pace_us;
    return options;
}

int main(int count, char **arguments) {
    struct load load = {.options = read_options(count, arguments)};
    if (load.options.port <= 0 || load.options.conns <= 0 || load.options.seconds <= 0) {
        fputs("load: --port, --conns and --seconds must be above 0\n", stderr);
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    raise_descriptor_limit();
    write_request(&load);
    open_connections(&load);
    run(&load);
    print_results(&load);
    return 0;
}
