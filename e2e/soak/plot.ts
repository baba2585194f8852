import type { Point } from './trend.ts'

/** Lines over time, one panel each, as an SVG that needs nothing else. */
export function plot(title: string, panels: { name: string; unit: string; points: readonly Point[] }[]): string {
  const [width, height, left, top] = [760, 130, 60, 40]
  const drawn = panels.map(({ name, unit, points }, index) => {
    const y = top + index * (height + 40)
    const shown = points.filter(({ value }) => Number.isFinite(value))
    const values = shown.map(({ value }) => value)
    const most = Math.max(...values, 1)
    const last = Math.max(points.at(-1)?.atMs ?? 0, 1)
    const line = shown
      .map(
        ({ atMs, value }) =>
          `${(left + (atMs / last) * (width - left - 20)).toFixed(1)},${(y + height - (value / most) * height).toFixed(1)}`,
      )
      .join(' ')
    return `<text x="${left}" y="${y - 6}" font-weight="bold">${name}, ${unit}</text>
<path d="M${left} ${y}V${y + height}H${width - 20}" fill="none" stroke="#b9bec6"/>
<text x="${left - 6}" y="${y + 10}" text-anchor="end">${most.toFixed(0)}</text><text x="${left - 6}" y="${y + height}" text-anchor="end">0</text>
<text x="${width - 20}" y="${y + height + 14}" text-anchor="end">${(last / 60_000).toFixed(1)} min</text>
<polyline points="${line}" fill="none" stroke="#2f7d5b" stroke-width="1.5"/>`
  })
  const total = top + panels.length * (height + 40)
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${total}" width="${width}" height="${total}" font-family="system-ui, sans-serif" font-size="12" fill="#24292f">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="20" y="18" opacity="0.7">${title}</text>
${drawn.join('\n')}
</svg>
`
}
