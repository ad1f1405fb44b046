// Daybook: one executable for every command. It acts by the name that it is called by:
//
//   daybook COMMAND …     COMMAND
//   mkfs.daybook …        mkfs        as mkfs(8) calls it
//   mount.daybook …       mount       as mount(8) calls it; mount.fuse.daybook too
//   fsck.daybook …        fsck        as fsck(8) calls it
//
// Whatever goes wrong ends here: one line on standard error and an exit status of the kind that the command's callers
// expect (ExitStatus).

import ArgumentParser
import Glibc

struct Daybook: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "daybook",
        abstract: "A filesystem whose journal is the truth: every moment of its past can be opened again.",
        version: version,
        subcommands: [
            MkfsCommand.self, MountCommand.self, FsckCommand.self, LogCommand.self, ShowCommand.self, StatCommand.self, DigestCommand.self,
            SyncCommand.self, ScrubCommand.self,
        ])
}

let version = "0.1.0"

/// What exit statuses mean to the callers of a command. The one place that knows them.
struct ExitStatus {
    /// The command was called wrongly.
    let usage: Int32
    /// It could not do what it was asked.
    let failure: Int32

    static func of(_ command: String?) -> ExitStatus {
        switch command {
        case "mkfs": ExitStatus(usage: 1, failure: 1)
        case "mount": ExitStatus(usage: 1, failure: 32)  // mount(8)
        case "fsck": ExitStatus(usage: FsckStatus.usage, failure: FsckStatus.operationalError)
        default: ExitStatus(usage: 2, failure: 1)
        }
    }
}

/// Why a command ended without doing what it was asked; the message needs no name in front.
struct CommandError: Error, CustomStringConvertible {
    let description: String
    /// Instead of the command's usual status for a failure.
    let status: Int32?
    init(_ description: String, status: Int32? = nil) {
        self.description = description
        self.status = status
    }
    /// A path that leads nowhere.
    static func missing(_ path: String) -> CommandError {
        let number = errno
        return isUnreadable(path) ? CommandError("\(path): names that are not UTF-8 are not supported here") : .system(path, number)
    }
    /// The reason is in `errno`.
    static func system(_ what: String, _ number: Int32 = errno) -> CommandError {
        CommandError("\(what): \(String(cString: strerror(number)))")
    }
}

/// A wrong argument that the parser itself could not see.
struct UsageError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

@main enum Main {
    static func main() {
        let arguments = Invocation.arguments(CommandLine.arguments)
        let known = Daybook.configuration.subcommands.map { $0._commandName }
        let command = arguments.first.flatMap { known.contains($0) ? $0 : nil }
        if arguments.first == "help", arguments.count > 1, !known.contains(arguments[1]) {
            exit(report(UsageError("there is no command '\(arguments[1])' (try 'daybook --help')"), of: nil))
        }
        do {
            var parsed = try Daybook.parseAsRoot(arguments)
            try parsed.run()
        } catch { exit(report(error, of: command)) }
    }

    /// Says what went wrong, if anything did; returns the exit status.
    private static func report(_ error: any Error, of command: String?) -> Int32 {
        let status = ExitStatus.of(command)
        let name = "daybook" + (command.map { " " + $0 } ?? "")
        switch error {
        case let error as CommandError:
            printError("\(name): \(error.description)")
            return error.status ?? status.failure
        case let error as UsageError:
            printError("\(name): \(error.description)")
            return status.usage
        case let code as ExitCode:
            return code.rawValue
        default:
            let text = Daybook.fullMessage(for: error)
            switch Daybook.exitCode(for: error) {
            case .success:
                print(text)
                return 0
            case .validationFailure:
                // "Error: what is wrong", then usage; the usage is a page that --help shows as well.
                printError("\(name): \(oneLine(Daybook.message(for: error))) (try '\(name) --help')")
                return status.usage
            default:
                printError("\(name): \(oneLine(Daybook.message(for: error)))")
                return status.failure
            }
        }
    }

    private static func oneLine(_ text: String) -> String {
        text.split(separator: "\n").map { $0.drop { $0 == " " } }.joined(separator: " ")
    }
}

/// One line on standard error, written at once, so that lines of several threads do not mix.
func printError(_ line: String) {
    var text = line + "\n"
    text.withUTF8 { _ = write(2, $0.baseAddress!, $0.count) }
}
