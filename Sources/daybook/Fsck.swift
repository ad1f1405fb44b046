// daybook fsck: recovery and checking, offline.

import ArgumentParser
import Glibc

/// Exit status of fsck(8): a bit mask.
enum FsckStatus {
    static let clean: Int32 = 0
    static let corrected: Int32 = 1
    static let rebootNeeded: Int32 = 2
    static let uncorrected: Int32 = 4
    static let operationalError: Int32 = 8
    static let usage: Int32 = 16
    static let cancelled: Int32 = 32
}

struct FsckCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "fsck", abstract: "Replay the journal, check everything, repair.",
        discussion: """
            Exit status: 0 no errors, 1 errors corrected, 4 errors left, 8 operational error, 16 usage, 32 cancelled; their sum for several.
            """)

    @Flag(name: .customShort("n"), help: "Change nothing at all; only say what is wrong.")
    var changeNothing = false
    @Flag(name: [.customShort("p"), .customShort("a")], help: "Repair what can be repaired without a doubt, without asking.")
    var preen = false
    @Flag(name: .customShort("y"), help: "Repair all that can be repaired, without asking.")
    var repairAll = false
    @Flag(name: .customShort("f"), help: "Check even if the filesystem was unmounted cleanly.")
    var force = false
    @Option(name: .customLong("progress"), help: ArgumentHelp("Show progress on this descriptor (also -C[FD]).", valueName: "fd"))
    var progress: Int32?
    @Flag(name: .customShort("v"), help: "Say more.")
    var verbose = false
    @Flag(name: .customShort("V"), help: "Print the version.")
    var printVersion = false
    @Argument(help: ArgumentHelp("Image file or block device.", valueName: "image|device"))
    var image: String?

    func run() throws {
        if printVersion {
            print("daybook fsck \(version)")
            return
        }
        guard let image else { throw UsageError("which image or device?") }
        guard [changeNothing, preen, repairAll].filter({ $0 }).count < 2 else {
            throw UsageError("-n, -p and -y exclude each other")
        }
        if let progress, fcntl(progress, F_GETFD) < 0 { throw UsageError("-C\(progress): no such descriptor") }
        // TODO-MERGE: the checker.
        throw CommandError("\(image): cannot be checked by this build")
    }
}
