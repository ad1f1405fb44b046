// swift-tools-version: 6.2
import PackageDescription

/// The layers, lowest first; each imports only those below it (Docs/ARCHITECTURE.md).
let strict: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("InternalImportsByDefault"),
]

let package = Package(
    name: "daybook",
    products: [
        .executable(name: "daybook", targets: ["daybook"]),
        // Of the tests: put before the C library of a daemon, it makes its disk fail.
        .library(name: "DaybookFaults", type: .dynamic, targets: ["CFaults"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    ],
    targets: [
        .target(name: "CSupport", cSettings: [.unsafeFlags(["-O2"])]),
        .target(name: "Memory", dependencies: ["CSupport"], swiftSettings: strict),
        .target(name: "Format", dependencies: ["Memory"], swiftSettings: strict),
        .target(name: "Device", dependencies: ["Format", "Memory", "CSupport"], swiftSettings: strict),
        .target(name: "Journal", dependencies: ["Device", "Format", "Memory"], swiftSettings: strict),
        .target(name: "Tree", dependencies: ["Device", "Format", "Memory"], swiftSettings: strict),
        .target(name: "Space", dependencies: ["Tree", "Device", "Format", "Memory"], swiftSettings: strict),
        .target(
            name: "Volume", dependencies: ["Space", "Tree", "Journal", "Device", "Format", "Memory"],
            swiftSettings: strict),
        .target(
            name: "Check", dependencies: ["Volume", "Journal", "Device", "Format", "Memory"], swiftSettings: strict),
        .target(
            name: "Rebuild", dependencies: ["Check", "Volume", "Space", "Tree", "Journal", "Device", "Format", "Memory"],
            swiftSettings: strict),
        .target(
            name: "Digest", dependencies: ["Volume", "Device", "Format", "Memory", "CCrypto", "CSupport"], swiftSettings: strict),
        .systemLibrary(name: "CFuse", pkgConfig: "fuse3", providers: [.apt(["libfuse3-dev"])]),
        .target(name: "CFuseShim", dependencies: ["CFuse"]),
        .target(
            name: "FuseAdapter",
            dependencies: ["Volume", "Device", "Format", "Memory", "CFuse", "CFuseShim", .product(name: "Logging", package: "swift-log")],
            swiftSettings: strict),
        .systemLibrary(name: "CBlkid", pkgConfig: "blkid", providers: [.apt(["libblkid-dev"])]),
        .systemLibrary(name: "CCrypto", pkgConfig: "libcrypto", providers: [.apt(["libssl-dev"])]),
        .executableTarget(
            name: "daybook",
            dependencies: [
                "FuseAdapter", "Rebuild", "Check", "Digest", "Volume", "Space", "Tree", "Journal", "Device", "Format", "Memory", "CBlkid",
                "CSupport",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(name: "ByPath", dependencies: ["Volume", "Format", "Memory"], swiftSettings: strict),
        .target(
            name: "Exploration", dependencies: ["ByPath", "Check", "Volume", "Device", "Format", "Memory"], swiftSettings: strict),
        .executableTarget(
            name: "daybook-explore",
            dependencies: ["Device", "Exploration", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            swiftSettings: strict),
        .target(
            name: "Fuzzing",
            dependencies: ["ByPath", "Check", "Digest", "Volume", "Space", "Journal", "Device", "Format", "Memory", "CSupport"], swiftSettings: strict),
        .executableTarget(
            name: "daybook-fuzz",
            dependencies: ["Fuzzing", "Memory", .product(name: "ArgumentParser", package: "swift-argument-parser")],
            swiftSettings: strict),
        .testTarget(
            name: "FuzzingTests", dependencies: ["Fuzzing", "Check", "Volume", "Device", "Format", "Memory"], exclude: ["corpus.txt"]),
        .testTarget(name: "ExplorationTests", dependencies: ["Exploration", "Volume", "Device", "Format", "Memory"]),
        .target(name: "TestSupport", dependencies: ["ByPath", "Volume", "Device", "Format", "Memory"], path: "Tests/TestSupport", swiftSettings: strict),
        .target(name: "CTestSupport", path: "Tests/CTestSupport"),
        .target(name: "CFaults", path: "Tests/CFaults"),
        .testTarget(name: "FormatTests", dependencies: ["Format", "Device", "Memory"]),
        .testTarget(name: "TreeTests", dependencies: ["Tree", "Device", "Format", "Memory"]),
        .testTarget(
            name: "VolumeTests",
            dependencies: ["TestSupport", "Volume", "Space", "Tree", "Journal", "Device", "Format", "Memory"]),
        .testTarget(
            name: "CheckTests", dependencies: ["TestSupport", "Rebuild", "Check", "Digest", "Volume", "Journal", "Tree", "Space", "Device", "Format", "Memory"]),
        .testTarget(name: "FuseAdapterTests", dependencies: ["FuseAdapter", "CFuseShim", "Device", "Volume", "Format", "Memory"]),
        .testTarget(name: "MountTests", dependencies: ["daybook", "Volume", "Format"]),
        .testTarget(name: "CommandTests", dependencies: ["daybook", "FuseAdapter", "ByPath", "CTestSupport", "CFaults", "Digest", "Check", "Journal", "Volume", "Space", "Device", "Format", "Memory"]),
    ]
)
