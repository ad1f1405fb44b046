// daybook-fuzz: hostile images, one after the other (Tools/fuzz).
//
//   driver ──starts──► worker ──tells──► "m 17" a mutant begins, "s read" a stage of it, "f …" what must not be, "e" it is over
//     ▲                  │ a trap, a hang, memory without bound end the worker, not the run:
//     └── notes which mutant that was and at what stage ◄──┘ and starts another with the next mutant
//
// A mutant is known by two numbers, and by its recipe; each of them makes it again.

import ArgumentParser
import Fuzzing
import Glibc

@main struct Fuzz: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fuzz", abstract: "Opens mutants of images in every way there is: no trap, no hang, no memory without bound.",
        discussion: """
            Status 1 when some mutant was too much for us; a line for each says how to make it again. With --mutant or --recipe just that one \
            is made, in this process, so that a debugger can watch.
            """)

    @Option(help: "End after so many seconds.") var seconds = 60.0
    @Option(help: "Of the mutants drawn.") var seed: UInt64?
    @Option(help: "The first mutant's number.") var from: UInt64 = 0
    @Option(help: "So many mutants at most.") var count = UInt64.max
    @Option(help: "Every so many mutants the commands are run as well; 0: never.") var commands: UInt64 = 40
    @Option(help: "Of those, every so many is mounted, as root only; 0: never.") var mounts: UInt64 = 4
    @Option(help: "Seconds that a stage may take.") var limit = 30.0
    @Option(help: "MiB of memory that a process may take.") var memory = 1024
    @Option(help: "Only the mutant of this number, in this process.") var mutant: UInt64?
    @Option(help: "Only the mutant made this way, in this process.") var recipe: String?
    @Option(help: "With --mutant or --recipe: only write the image to this file.") var save: String?
    @Flag(help: "Only list the parts of the images that mutants are made from, as recipes number them.") var parts = false
    @Flag(help: "End at the first that is too much.") var stop = false
    /// Of a worker: where it may write.
    @Option(help: .hidden) var worker: String?

    func run() throws {
        var generator = SystemRandomNumberGenerator()
        let seed = seed ?? generator.next() >> 32
        if parts {
            for base in BaseImage.allCases { for line in try ImageMap(base.make()).list { say("\(base.label) \(line)") } }
        } else if mutant != nil || recipe != nil {
            let directory = try ScratchDirectory()
            defer { directory.remove() }
            let bench = try Bench(self, seed: seed, directory: directory.path)
            let chosen = try recipe.map { text in
                guard let recipe = Recipe(text) else { throw ValidationError("no recipe: \(text)") }
                return recipe
            } ?? bench.recipe(mutant!)
            say("recipe: \(chosen)")
            if let save {
                guard bench.save(chosen, save) else { throw ValidationError("cannot write \(save)") }
                return
            }
            bench.tell("m \(mutant ?? 0)")
            let wrong = bench.run(chosen, number: mutant ?? 0, commands: commands == 1, mounts: mounts == 1)
            if !wrong.isEmpty { throw ExitCode(1) }
        } else if let worker {
            let bench = try Bench(self, seed: seed, directory: worker)
            var number = from
            while number < from &+ count {
                bench.tell("m \(number)")
                _ = bench.run(
                    bench.recipe(number), number: number, commands: commands > 0 && number % commands == commands - 1,
                    mounts: commands > 0 && mounts > 0 && number / commands % mounts == mounts - 1)
                bench.tell("e")
                number += 1
            }
        } else {
            say("seed \(seed)")
            let directory = try ScratchDirectory()
            defer { directory.remove() }
            try Driver(self, seed: seed, directory).run()
        }
    }
}

/// A place for images and a mount point, for as long as the driver lives.
private final class ScratchDirectory {
    let path: String

    init() throws {
        var template = Array(((getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp") + "/daybook-fuzz-XXXXXX").utf8CString)
        guard mkdtemp(&template) != nil else { throw ValidationError("no temporary directory") }
        path = String(decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// What a worker that was ended has left.
    func clear() {
        umount2(path + "/mount", Int32(MNT_DETACH))
        unlink(path + "/image")
    }

    func remove() {
        clear()
        rmdir(path + "/mount")
        rmdir(path)
    }
}

/// Makes mutants and tries them.
private final class Bench {
    private let fuzz: Fuzz
    private let seed: UInt64
    private let maps: [ImageMap]
    private let mutator: Mutator
    private let directory: String

    init(_ fuzz: Fuzz, seed: UInt64, directory: String) throws {
        self.fuzz = fuzz
        self.seed = seed
        self.directory = directory
        maps = try BaseImage.allCases.map { try ImageMap($0.make()) }
        mutator = Mutator(maps)
        // No image is larger than 128 MiB, and none may become it: who writes behind that is ended by a signal.
        var most = rlimit(rlim_cur: 256 << 20, rlim_max: 256 << 20)
        setrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &most)
    }

    func recipe(_ number: UInt64) -> Recipe { mutator.recipe(seed: seed, number: number) }

    func tell(_ line: String) { say(line) }

    func run(_ recipe: Recipe, number: UInt64, commands: Bool, mounts: Bool) -> [String] {
        guard let disk = recipe.apply(maps[recipe.base.rawValue]) else { return [] }
        var wrong = Trial(disk, random: seed &+ number) { self.tell("s \($0)") }.run()
        if commands {
            let trial = CommandTrial(
                program: Self.command, directory: directory, seconds: fuzz.limit, megabytes: fuzz.memory) { self.tell("s \($0)") }
            wrong += trial.run(disk, mounts: mounts && geteuid() == 0)
        }
        for line in wrong { tell("f \(line)") }
        return wrong
    }

    func save(_ recipe: Recipe, _ path: String) -> Bool {
        guard let disk = recipe.apply(maps[recipe.base.rawValue]) else { return false }
        return CommandTrial.write(disk, to: path)
    }

    /// The daybook executable next to this one.
    private static var command: String {
        var path = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink("/proc/self/exe", &path, path.count - 1)
        let own = String(decoding: path.prefix(max(count, 0)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return own[..<(own.lastIndex(of: "/") ?? own.endIndex)] + "/daybook"
    }
}

/// Runs workers one after the other until the time is up.
private final class Driver {
    private let fuzz: Fuzz
    private let seed: UInt64
    private let began = now()
    private var shown = now()
    private var next: UInt64
    private var done: UInt64 = 0
    private var findings: [String] = []

    private let directory: ScratchDirectory

    init(_ fuzz: Fuzz, seed: UInt64, _ directory: ScratchDirectory) {
        self.fuzz = fuzz
        self.seed = seed
        self.directory = directory
        next = fuzz.from
    }

    private var isOver: Bool {
        now() - began >= fuzz.seconds || next &- fuzz.from >= fuzz.count || fuzz.stop && !findings.isEmpty
    }

    func run() throws {
        while !isOver { try runWorker() }
        show()
        guard findings.isEmpty else {
            for finding in findings { say(finding) }
            throw ExitCode(1)
        }
    }

    private func show() {
        let time = now() - began
        say("\(done) mutants in \(Int(time)) s, \(Int(Double(done) / max(time, 0.001))) a second, \(findings.count) too much for us")
    }

    private func runWorker() throws {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw ValidationError("pipe") }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        let words = [
            "/proc/self/exe", "--worker", directory.path, "--seed", "\(seed)", "--from", "\(next)", "--count", "\(fuzz.count - (next - fuzz.from))", "--commands", "\(fuzz.commands)",
            "--mounts", "\(fuzz.mounts)", "--limit", "\(fuzz.limit)", "--memory", "\(fuzz.memory)",
        ]
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { for argument in arguments { free(argument) } }
        var id: pid_t = 0
        // A group of its own, so that what it has started can be ended with it.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP))
        posix_spawnattr_setpgroup(&attributes, 0)
        let failure = posix_spawn(&id, words[0], &actions, &attributes, &arguments, environ)
        posix_spawnattr_destroy(&attributes)
        posix_spawn_file_actions_destroy(&actions)
        close(ends[1])
        defer { close(ends[0]) }
        guard failure == 0 else { throw ValidationError("cannot start a worker: \(String(cString: strerror(failure)))") }
        let verdict = follow(id, ends[0])
        var status: Int32 = 0
        // Until it has been waited for, its number is nobody else's.
        if verdict != nil || isOver { kill(-id, SIGKILL) }
        while waitpid(id, &status, 0) < 0 && errno == EINTR {}
        directory.clear()
        let signal = status & 0x7f
        if let verdict {
            note(verdict)
        } else if !isOver, signal != 0 || status >> 8 & 0xff != 0 {
            note(signal != 0 ? "ended by signal \(signal)" : "ended with status \(status >> 8 & 0xff)")
        } else {
            return
        }
        next = mutant + 1
    }

    // What the worker has told of last.
    private var mutant: UInt64 = 0
    private var stage = "start"

    private func note(_ what: String) {
        let text = "VIOLATION mutant \(mutant), \(stage): \(what); again: --seed \(seed) --mutant \(mutant)"
        findings.append(text)
        say(text)
    }

    /// Reads what the worker tells until it ends or the time is up; says why it has to be ended, if it has.
    private func follow(_ id: pid_t, _ descriptor: Int32) -> String? {
        var rest: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65536)
        var heard = now()
        while true {
            var ready = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
            let count = poll(&ready, 1, 200)
            if count > 0 {
                let bytes = read(descriptor, &buffer, buffer.count)
                if bytes == 0 { return nil }
                if bytes > 0 { rest += buffer.prefix(bytes) }
                while let end = rest.firstIndex(of: 10) {
                    take(String(decoding: rest[..<end], as: UTF8.self))
                    rest.removeSubrange(...end)
                }
                heard = now()
            }
            if isOver { return nil }
            // A command's own limit comes first.
            if now() - heard > fuzz.limit * 2 + 5 { return "no answer within \(Int(now() - heard)) seconds" }
            if let taken = Self.resident(id), taken > fuzz.memory << 20 { return "took \(taken >> 20) MiB of memory" }
            if now() - shown > 30 {
                shown = now()
                show()
            }
        }
    }

    private func take(_ line: String) {
        let text = String(line.dropFirst(2))
        switch line.first {
        case "m":
            mutant = UInt64(text) ?? mutant
            stage = "start"
        case "s": stage = text
        case "f": note(text)
        case "e":
            done += 1
            next = mutant + 1
        default: break
        }
    }

    private static func resident(_ id: pid_t) -> Int? {
        let descriptor = open("/proc/\(id)/statm", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: 256)
        let count = read(descriptor, &buffer, buffer.count)
        let words = String(decoding: buffer.prefix(max(count, 0)), as: UTF8.self).split(separator: " ")
        return words.count > 1 ? Int(words[1]).map { $0 * 4096 } : nil
    }
}

/// At once: the next thing may be the end.
private func say(_ line: String) {
    var text = line + "\n"
    text.withUTF8 { _ = write(1, $0.baseAddress!, $0.count) }
}

private func now() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
