# Install tourkit from the wheels in this bundle into a virtual environment. Needs no network, writes nothing here.
#   powershell -ExecutionPolicy Bypass -File install.ps1 [-Venv DIR] [-Python EXE] [-Wheels DIR] [-Extras llama]
param(
    [string]$Venv = (Join-Path (Get-Location).Path 'tourkit-venv'),
    [string]$Python = '',
    [string]$Wheels = '',
    [string]$Extras = 'auto'
)
$ErrorActionPreference = 'Stop'

function Fail([int]$Code, [string]$Message) {
    [Console]::Error.WriteLine("install.ps1: $Message")
    exit $Code
}

$describe = 'import platform, sys, sysconfig; name = sysconfig.get_platform().replace(chr(45), chr(95)).replace(chr(46), chr(95)); print(*sys.version_info[:2], chr(99) + chr(112) + str(sys.version_info[0]) + str(sys.version_info[1]) + chr(45) + name)'
$here = $PSScriptRoot
$own = Join-Path $here 'wheels'
$full = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Venv)
if (($full + '\').StartsWith($here.TrimEnd('\') + '\', [StringComparison]::OrdinalIgnoreCase)) {
    Fail 2 "$full lies inside the bundle: give a place outside, such as -Venv $HOME\tourkit-venv"
}
if ($Wheels) {
    if (-not (Test-Path -LiteralPath $Wheels -PathType Container)) { Fail 2 "no folder $Wheels (from -Wheels)" }
} elseif (-not (Test-Path -LiteralPath $own -PathType Container)) {
    Fail 4 "this bundle has no wheels\ folder: on a connected machine with the same system and Python run 'pip wheel PATH-TO-TOURKIT[llama] -w DIR', bring DIR along, then give -Wheels DIR"
}

# Each candidate is a command and its first arguments: the py launcher knows every installed version.
$candidates = if ($Python) { , @($Python) } else { @('py', '-3.13'), @('py', '-3.12'), @('py', '-3.11'), @('python'), @('python3') }
$found = $null
$tried = @()
foreach ($candidate in $candidates) {
    $command = $candidate[0]
    $first = @($candidate | Select-Object -Skip 1)
    if (-not (Get-Command $command -ErrorAction SilentlyContinue)) { continue }
    $facts = $null
    try { $facts = & $command @first -c $describe 2>$null } catch { continue }
    if ($LASTEXITCODE -ne 0 -or -not $facts) { continue }
    $major, $minor, $name = "$facts".Trim() -split ' '
    $tried += "$($candidate -join ' ') ($major.$minor, needs wheels\$name)"
    $folder = if ($Wheels) { $Wheels } else { Join-Path $own $name }
    if ([int]$major -eq 3 -and [int]$minor -ge 11 -and (Test-Path -LiteralPath $folder -PathType Container)) {
        $found = $candidate
        break
    }
}
if (-not $found) {
    if (-not $tried) { Fail 4 'no Python found: install 3.11 or newer, or give -Python C:\path\to\python.exe' }
    if ($Wheels) { Fail 4 "no Python of 3.11 or newer. Tried: $($tried -join ', ')" }
    $there = (Get-ChildItem -LiteralPath $own -Name) -join ' '
    Fail 4 "no Python of 3.11 or newer that fits the wheels here. Tried: $($tried -join ', '). In wheels\: $there"
}
if ($Extras -eq 'auto') {
    $Extras = if (Test-Path (Join-Path $folder 'llama_cpp_python-*.whl')) { 'llama' } else { '' }
}
if ((Test-Path -LiteralPath $full) -and -not (Test-Path -LiteralPath (Join-Path $full 'pyvenv.cfg')) -and (Get-ChildItem -LiteralPath $full -Force)) {
    Fail 2 "$full is there and is no virtual environment: give another place with -Venv"
}

Write-Output "Python:  $($found -join ' ')" "Wheels:  $folder" "Into:    $full"
& $command @first -m venv $full
if ($LASTEXITCODE -ne 0) { Fail 4 "$($found -join ' ') -m venv failed: see its lines above" }
$package = if ($Extras) { "tourkit[$Extras]" } else { 'tourkit' }
& (Join-Path $full 'Scripts\python.exe') -m pip --isolated install --quiet --disable-pip-version-check --no-cache-dir --no-index --find-links $folder --upgrade $package
if ($LASTEXITCODE -ne 0) { Fail 4 "pip could not install from ${folder}: see its lines above" }
Write-Output 'Done. Next:' "  & '$full\Scripts\Activate.ps1'" "  tourkit verify '$here'" "  tourkit serve --bundle '$here' --offline"
