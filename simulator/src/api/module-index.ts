import type { Module } from '../modules/module.ts'

const byTable = new Map<string, Module>()

/**
 * Tells the engine which module describes the rows of a table. The first module of a table wins, so `users`
 * stands for /requesters and /technicians too. Called once by `modules.ts`.
 */
export function indexModules(modules: readonly Module[]): void {
  for (const module of modules) {
    if (!byTable.has(module.table)) byTable.set(module.table, module)
    indexModules(module.children ?? [])
  }
}

export function moduleOfTable(table: string): Module | undefined {
  return byTable.get(table)
}
