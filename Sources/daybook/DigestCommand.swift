// daybook digest: one SHA-256 for a tree (Docs/FORMAT.md, "Digest").

import ArgumentParser
import Digest
import Format
import Glibc
import Volume

struct DigestCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "digest", abstract: "Print a SHA-256 over a tree, the same for the same content.",
        discussion: """
            Names, types, permissions, owners, device numbers, extended attributes, hard links, symlink targets and contents count;
            inode numbers, times and places do not. An image or device is read as it was at POINT, or as it is; a
            directory is walked as any program would, whatever filesystem it is on, unless --at is given.
            Without the right to read all extended attributes (trusted.*: root only) the digest is another one.
            POINT is \(pointSyntax).
            """)

    @Argument(help: ArgumentHelp("Image file, block device, or any directory.", valueName: "image|device|dir"))
    var image: String
    @Option(help: ArgumentHelp("The tree at that point of its history.", valueName: "point"))
    var at: String?
    @Flag(name: .long, help: "Leave out the root directory's own permissions, owner and attributes.")
    var noRoot = false
    @Flag(name: .shortAndLong, help: "Also print a line for each name, to find differences with.")
    var verbose = false

    func run() throws {
        let point = try at.map { try parsePoint($0, for: "--at") }
        let output = Output()
        let sum: [UInt8]
        if point == nil, Self.isDirectory(image) {
            let directory = DirectorySource(image)
            do throws(DigestError) { sum = try digest(directory, output) } catch { throw CommandError(error.description) }
            if directory.missedAttributes {
                printError("daybook digest: \(image): some extended attributes cannot be read by this user and were left out")
            }
        } else {
            sum = try digestImage(try ImageSource(image), point, output)
        }
        try output.line(SHA256.hexadecimal(sum))
        try output.flush()
    }

    private static func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }

    private func digestImage(_ source: ImageSource, _ point: Point?, _ output: Output) throws -> [UInt8] {
        try source.pinned({ (image) throws(OpenError) in
            try point.map { (point) throws(OpenError) in try image.checkpoint(for: point) } ?? image.superblock.checkpoint
        }, { (image, _) throws(OpenError) -> Result<[UInt8], CommandError> in
            let view = try image.view(at: point).view
            // The view is pinned: what fails from here on is damage.
            do throws(ViewError) {
                let start = try view.resolve(Array(source.inside.utf8)).inode
                return try digestView(view, start, source, output)
            } catch { return .failure(CommandError("\(source.path): \(source.inside): \(describe(error))")) }
        }).get()
    }

    private func digestView(
        _ view: View, _ start: InodeNumber, _ source: ImageSource, _ output: Output
    ) throws(ViewError) -> Result<[UInt8], CommandError> {
        do throws(DigestError) { return .success(try digest(ViewSource(view, from: start), output)) } catch {
            return .failure(CommandError("\(source.path): \(error.description)"))
        }
    }

    private func describe(_ error: ViewError) -> String {
        if case .refused(.notFound) = error { return "is not there at that point" }
        return error.text
    }

    private func digest(_ source: some DigestSource, _ output: Output) throws(DigestError) -> [UInt8] {
        let tree = TreeDigest()
        tree.countsRoot = !noRoot
        if verbose {
            tree.onEntry = { (line) throws(DigestError) in
                do throws(CommandError) { try output.line(line.text) } catch { throw DigestError(error.description) }
            }
        }
        return try tree.digest(source)
    }
}

extension DigestLine {
    /// Mode, owner, group, what kind-specific there is, attributes, and the path last: equal lines for equal files.
    var text: String {
        var words = [leftPadded(String(node.mode, radix: 8), 6).replacing(" ", with: "0"), "\(node.uid):\(node.gid)"]
        switch detail {
        case .none: words.append("-")
        case .content(let size, let sum): words += ["\(size)", SHA256.hexadecimal(sum)]
        case .target(let target): words.append("-> " + shown(target))
        case .device(let major, let minor): words.append("\(major),\(minor)")
        case .link(let first): words.append("= entry \(first)")
        }
        for xattr in xattrs.sorted(by: { $0.name.lexicographicallyPrecedes($1.name) }) {
            let hash = SHA256()
            hash.update(xattr.value)
            words.append(shown(xattr.name) + "=" + SHA256.hexadecimal(Array(hash.finish().prefix(8))))
        }
        return words.joined(separator: " ") + "  /" + shown(path)
    }
}
