// CommandTrial: the commands themselves on one mutant, mounts included, each in a process of its own with limits on time and memory.
// Whatever they answer is right; ended by a signal, out of time or out of memory is not.

import CSupport
import Device
import Format
import Glibc
import Memory

public struct CommandTrial {
    private let program: String
    private let directory: String
    private let image: String
    private let seconds: Double
    private let megabytes: Int
    private let stage: (String) -> Void

    /// `program`: the daybook executable. `directory`: of the caller's own, for the image and a mount point.
    public init(program: String, directory: String, seconds: Double, megabytes: Int, stage: @escaping (String) -> Void) {
        self.program = program
        self.directory = directory
        image = directory + "/image"
        self.seconds = seconds
        self.megabytes = megabytes
        self.stage = stage
    }

    /// What happened that must not. `mounts`: mount it as well.
    public func run(_ disk: MutantDisk, mounts: Bool) -> [String] {
        // Of those that are long, with holes, this is not to fill any disk.
        guard disk.blockCount <= 4 * BaseImage.blockCount else { return [] }
        guard write(disk) else { return ["cannot write \(image)"] }
        defer { unlink(image) }
        var violations: [String] = []
        func command(_ words: String...) {
            stage("daybook " + words.joined(separator: " "))
            if let wrong = Process([program] + words + [image]).end(seconds, megabytes) {
                violations.append("daybook \(words.joined(separator: " ")): \(wrong)")
            }
        }
        command("stat")
        command("stat", "--json")
        command("log")
        command("log", "--json", "--reverse")
        command("digest")
        command("digest", "--at", "30", "-v")
        command("scrub", "--json")
        stage("daybook show")
        for sequence in ["1", "40", "90"] {
            if let wrong = Process([program, "show", image, sequence]).end(seconds, megabytes) { violations.append("daybook show \(sequence): \(wrong)") }
        }
        command("fsck", "-n", "-f", "--data")
        if mounts {
            violations += mount(options: "ro")
            violations += mount(options: "at=40")
            violations += mount(options: "rw")
            _ = write(disk)
        }
        command("fsck", "-p")
        _ = write(disk)
        command("fsck", "-y", "-f")
        command("fsck", "-n", "-f")
        return violations
    }

    private func write(_ disk: MutantDisk) -> Bool { Self.write(disk, to: image) }

    public static func write(_ disk: MutantDisk, to path: String) -> Bool {
        unlink(path)
        let descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        guard ftruncate(descriptor, off_t(disk.blockCount) << 12) == 0 else { return false }
        for (block, bytes) in disk.contents {
            guard pwrite(descriptor, bytes, bytes.count, off_t(block) << 12) == bytes.count else { return false }
        }
        return true
    }

    // MARK: mounting

    private static let reading = """
        cd "$0" || exit 1
        ls -laR . 2>/dev/null | head -c 300000 >/dev/null
        find . -type f 2>/dev/null | head -40 | while read -r f; do head -c 200000 "$f" >/dev/null 2>&1; done
        """
    private static let writing = reading + """

        mkdir new 2>/dev/null; cp -a dir new/ 2>/dev/null; echo text > new/file 2>/dev/null; mv new/file moved 2>/dev/null
        ln moved other 2>/dev/null; truncate -s 10 big 2>/dev/null; echo more >> moved 2>/dev/null; rm -rf dir churn1 2>/dev/null
        sync moved 2>/dev/null; df . >/dev/null 2>&1; exit 0
        """

    private func mount(options: String) -> [String] {
        let point = directory + "/mount"
        mkdir(point, 0o755)
        stage("daybook mount -o \(options)")
        var violations: [String] = []
        let daemon = Process([program, "mount", "-f", "-o", options, image, point])
        func told(_ wrong: String?, _ what: String) { if let wrong { violations.append("mount -o \(options): \(what): \(wrong)") } }
        func isMounted() -> Bool { MountedFilesystem.at(point)?.isDaybook == true }
        let mounted = daemon.wait(seconds) { isMounted() }
        if daemon.isRunning && mounted {
            stage("in a mount -o \(options)")
            let script = options == "rw" ? Self.writing : Self.reading
            // What it answers is its own affair, but it has to.
            if let wrong = Process(["/bin/sh", "-c", script, point]).end(seconds * 2, megabytes), wrong.hasPrefix("no answer") { told(wrong, "a program in it") }
            stage("umount")
            for _ in 0..<50 where isMounted() && umount2(point, 0) != 0 { usleep(20_000) }
            told(daemon.end(seconds, megabytes), "the daemon")
        } else {
            told(daemon.end(mounted ? seconds : 0.01, megabytes), "the daemon")
        }
        if isMounted() { umount2(point, Int32(MNT_DETACH)) }
        return violations
    }
}

/// A child with nothing on its standard streams.
private final class Process {
    private var id: pid_t = 0
    private var status: Int32 = 0
    private var usage = rusage()
    private(set) var isRunning = true

    init(_ words: [String]) {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        for descriptor in 0...2 as ClosedRange<Int32> { posix_spawn_file_actions_addopen(&actions, descriptor, "/dev/null", O_RDWR, 0) }
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        isRunning = posix_spawn(&id, words[0], &actions, nil, &arguments, environ) == 0
        posix_spawn_file_actions_destroy(&actions)
        for argument in arguments { free(argument) }
    }

    private func look() { if isRunning, wait4(id, &status, WNOHANG, &usage) == id { isRunning = false } }

    /// Until it has ended, or `isDone`. False when neither came in time.
    func wait(_ seconds: Double, _ isDone: () -> Bool = { false }) -> Bool {
        let began = now()
        var pause: UInt32 = 500
        while true {
            look()
            if !isRunning || isDone() { return true }
            guard now() - began < seconds else { return false }
            usleep(pause)
            pause = min(pause * 2, 20_000)
        }
    }

    /// Waits for its end, or brings it about; says what was wrong with it.
    func end(_ seconds: Double, _ megabytes: Int) -> String? {
        guard wait(seconds) else {
            kill(id, SIGKILL)
            wait4(id, &status, 0, &usage)
            isRunning = false
            return "no answer within \(Int(seconds)) seconds"
        }
        if status & 0x7f != 0 { return "ended by signal \(status & 0x7f)" }
        if usage.ru_maxrss > megabytes << 10 { return "took \(usage.ru_maxrss >> 10) MiB of memory" }
        return nil
    }
}

private func now() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}
